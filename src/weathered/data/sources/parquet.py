"""`parquet:PATH`: the Hugging Face layout of images, or a table of numbers."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from torch import Tensor

from weathered.core.atomic import write_atomically
from weathered.core.errors import DataError
from weathered.data.cache import save_array
from weathered.data.dataset import Dataset
from weathered.data.encoded import BytesImages, Encoded, split_rows
from weathered.data.images import BadImage
from weathered.data.labels import DEFAULT_COLUMNS, MissingColumn, choose_column
from weathered.data.sources.arrow import (
    coded_columns,
    declared_features,
    is_extra,
    read_extra,
    read_labels,
    table_dataset,
)
from weathered.data.sources.columns import as_texts
from weathered.data.sources.options import ReadOptions, check_memory, existing_file
from weathered.data.sources.segmentation import masked
from weathered.data.stream import StreamInputs

HASHED_WHOLE = 1 << 30
"""Larger files are recognised by path, size and time of change instead of their content."""
LABELS = 64 << 20
"""Labels of images up to this many bytes are read whatever the memory limit says of the images."""
ROWS = 1 << 13
"""Rows of a table that are read at a time."""


def read_parquet(rest: str, options: ReadOptions) -> Dataset:
    """Images from a column of {bytes, path} or of bytes, with a label column; without one a table of numbers.

    The image column is the one that the metadata declares, or `image`. Labels are text, or whole numbers that index
    the class names of the metadata where it has any. Further whole-number and list columns become `extra`.
    Raises DataError for a file that cannot be read, and for tables above the memory limit.
    """
    path = existing_file(rest, "parquet")
    limit = options.memory_limit_bytes
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{path}: the column '{twice}' occurs twice.")
        features = declared_features(schema)
        image = image_column(schema, features)
        if options.mask_column is not None:
            return _masked(path, schema, image, options)
        if image is None:
            return table_dataset(read_columns(path, schema.names, limit), features, options, str(path), path.stem)
        columns: list[str] = [name for name in schema.names if not is_image_type(schema.field(name).type)]
        labelling = {options.label_column, options.clean_column, *DEFAULT_COLUMNS}
        wanted: list[str] = [c for c in columns if is_extra(schema.field(c).type) or c in labelling]
        table = read_columns(path, wanted, max(limit, LABELS))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a parquet file that can be read: {_one_line(error)}.") from error
    try:
        labels = read_labels(table, columns, features, options, str(path))
    except MissingColumn as error:
        masks = [name for name in schema.names if name != image and is_image_type(schema.field(name).type)]
        hint = f" If '{masks[0]}' holds a class for each pixel, pass --mask-column {masks[0]}." if masks else ""
        raise MissingColumn(f"{error}{hint}") from error
    return Dataset(
        StreamInputs(ParquetImages(path, image), image_size=options.image_size),
        labels.labels,
        labels.names,
        name=path.stem,
        clean_labels=labels.clean,
        extra=read_extra(table, [c for c in wanted if c not in labels.used]),
    )


def _masked(path: Path, schema: pa.Schema, image: str | None, options: ReadOptions) -> Dataset:
    """Images with a column of masks; all other columns are not read."""
    images = [field.name for field in schema if is_image_type(field.type)]
    mask = choose_column(images, options.mask_column, "mask", str(path))
    # a column of masks is declared as images too
    image = image if image != mask else next((name for name in images if name != mask), None)
    if image is None:
        raise DataError(f"{path}: besides the masks in '{mask}' there is no column of images.")
    if options.label_column is not None or options.clean_column is not None:
        raise DataError(f"{path}: masks take the place of labels; leave --label-column and --clean-column out.")
    return masked(ParquetImages(path, image), ParquetImages(path, mask), options, path.stem, None)


def read_label_columns(rest: str, columns: Sequence[str], class_names: tuple[str, ...]) -> Int[Tensor, "N M"]:
    """See `label_columns`."""
    path = existing_file(rest, "parquet")
    try:
        schema = pq.read_schema(path)
        names = schema.names
        for column in columns:
            choose_column(names, column, "label", str(path))
        table = read_columns(path, columns, LABELS)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a parquet file that can be read: {_one_line(error)}.") from error
    return coded_columns(table, columns, declared_features(schema), class_names, str(path))


def read_text_column(rest: str, column: str) -> list[str]:
    """One column as text, '' where it is missing. Raises DataError if it is not there or holds something else."""
    path = existing_file(rest, "parquet")
    try:
        choose_column(pq.read_schema(path).names, column, "such", str(path))
        table = read_columns(path, [column], LABELS)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a parquet file that can be read: {_one_line(error)}.") from error
    return as_texts(table[column].to_pylist(), column, path)


def read_columns(path: Path, columns: Sequence[str], limit: int) -> pa.Table:
    """The columns of a parquet file. Raises DataError where their numbers take more than `limit` bytes as float32, or
    all of them more than twice that as they are: they may be float64.

    What the file says of itself is looked at first, but a few bytes of it may stand for a long text in every row.
    """
    remedy = "keep fewer rows or columns"
    schema = pq.read_schema(path)
    # long texts are then read once, not once a row
    texts = [field.name for field in schema if is_text_type(field.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        groups = (file.metadata.row_group(g) for g in range(file.metadata.num_row_groups))
        chunks = [chunk for group in groups for chunk in map(group.column, range(group.num_columns))]
        wanted = tuple(f"{name}." for name in columns)
        chunks = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(wanted)]
        values = sum(chunk.num_values for chunk in chunks)
        stored = sum(chunk.total_uncompressed_size for chunk in chunks)
        check_memory(path, max(4 * values, stored // 2), limit, remedy)
        batches, size = [], 0
        for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
            size += sum(map(_size, batch.columns))
            check_memory(path, size // 2, limit, remedy)
            batches.append(batch)
    table = pa.Table.from_batches(batches) if batches else schema.empty_table()
    return table.select(list(columns)).cast(pa.schema([schema.field(name) for name in columns]))


def is_text_type(kind: pa.DataType) -> bool:
    """Whether a column holds text or bytes of any length."""
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string)) or is_bytes_type(kind)


def is_bytes_type(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _size(column: pa.Array) -> int:
    """Bytes of a column with every text written out."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    if not is_text_type(column.type.value_type):
        return 8 * len(column)
    lengths = pc.call_function("binary_length", [column.dictionary]).take(column.indices)
    return pc.call_function("sum", [lengths]).as_py() or 0


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column may hold encoded images: bytes, or a struct with a field `bytes` of bytes."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and is_image_type(kind.field(place).type)
    return is_bytes_type(kind)


def image_column(schema: pa.Schema, features: dict[str, Any]) -> str | None:
    """The column of images: `image` or `img` if there is one, else the first that is declared or looks like one."""
    found = [field.name for field in schema if is_image_type(field.type)]
    declared = [name for name in found if features.get(name, {}).get("_type") == "Image"]
    preferred = [name for name in ("image", "img") if name in found]
    return next(iter([*preferred, *declared, *found]), None)


class ParquetImages:
    """The image column of one parquet file."""

    def __init__(self, path: Path, column: str):
        self.path, self.column = path, column
        with pq.ParquetFile(path) as file:
            metadata = file.metadata
            self.group_sizes = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]

    def __len__(self) -> int:
        return sum(self.group_sizes)

    def where(self, row: int) -> str:
        return f"{self.path} row {row}"

    def read(self, row: int) -> bytes:
        (_, source), *_ = self.chunks(np.array([row]), 1)
        return source.read(row)

    def chunks(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Encoded]]:
        """Reads only the row groups that are needed, a few thousand rows at a time."""
        first = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for group, count in enumerate(self.group_sizes):
                    low, high = np.searchsorted(rows, [first, first + count])
                    if low < high:
                        yield from self._group_chunks(file, group, first, rows[low:high], size)
                    first += count
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: the file cannot be read to its end: {_one_line(error)}.") from error

    def _group_chunks(
        self, file: pq.ParquetFile, group: int, first: int, rows: np.ndarray, size: int
    ) -> Iterator[tuple[np.ndarray, Encoded]]:
        for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=[self.column]):
            low, high = np.searchsorted(rows, [first, first + len(batch)])
            for part in split_rows(rows[low:high], size):
                column = batch.column(0).take(pa.array(part - first))
                if pa.types.is_struct(column.type):
                    column = column.field("bytes")
                yield part, BytesImages(column.to_pylist(), str(self.path), part)
            first += len(batch)

    def fingerprint(self) -> str:
        """Of the file's content and the column's name; above 1 GiB of its path, size and time of change."""
        stat = os.stat(self.path)
        if stat.st_size > HASHED_WHOLE:
            text = f"{self.path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
        else:
            with self.path.open("rb") as stream:
                text = hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha256(f"{text}\0{self.column}".encode()).hexdigest()

    def random_access(self, cache_dir: Path) -> Encoded:
        """The images' bytes laid end to end in one file of the cache, since row groups are slow to read by row."""
        path = cache_dir / f"{self.fingerprint()[:32]}.images"
        offsets = path.with_suffix(".offsets.npy")
        if not _whole(path, offsets):
            try:
                cache_dir.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda part: self._unpack(part, offsets))
            except OSError as error:
                raise DataError(
                    f"{self.path}: {len(self)} images do not fit into memory and cannot be unpacked into {cache_dir}: "
                    f"{error.strerror}. Set WEATHERED_CACHE to a folder with space, or pass --limit."
                ) from error
        return UnpackedImages(path, offsets, str(self.path))

    def _unpack(self, part: Path, offsets: Path) -> None:
        lengths = []
        with part.open("wb") as stream:
            for rows, source in self.chunks(np.arange(len(self)), 1024):
                for row in rows.tolist():
                    try:
                        data = source.read(row)
                    except BadImage:
                        data = b""
                    stream.write(data)
                    lengths.append(len(data))
        ends = np.cumsum([0, *lengths], dtype=np.int64)
        write_atomically(offsets, lambda path: save_array(path, ends))


def _whole(path: Path, offsets: Path) -> bool:
    try:
        return path.stat().st_size == int(np.load(offsets, allow_pickle=False)[-1])
    except (OSError, ValueError, IndexError, EOFError):
        return False


class UnpackedImages:
    """Images laid end to end in one file. offsets: (N + 1,) int64 positions as .npy. Opened anew in each process."""

    def __init__(self, path: Path, offsets: Path, name: str):
        self.path, self.name = path, name
        self.ends = np.load(offsets, allow_pickle=False)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def where(self, row: int) -> str:
        return f"{self.name} row {row}"

    def read(self, row: int) -> bytes:
        start, end = int(self.ends[row]), int(self.ends[row + 1])
        if start == end:
            raise BadImage(f"{self.where(row)}: the image has no bytes.")
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def chunks(self, rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Encoded]]:
        for part in split_rows(rows, size):
            yield part, self

    def fingerprint(self) -> str:
        return self.path.stem

    def random_access(self, cache_dir: Path) -> Encoded:
        return self


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
