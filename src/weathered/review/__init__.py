"""The review page: people check suspected labels in a browser, and export corrections."""
