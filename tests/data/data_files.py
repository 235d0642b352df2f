"""Small real files to read, written by the tests themselves."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def encode(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def colour(seed, height=6, width=6):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(seed, height=6, width=6):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def write_parquet(path, images, columns, names=None, group=None):
    """Images as {bytes, path}; names: column -> class names put into the metadata."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": data, "path": None} for data in images], type=kind)
    table = pa.table({"image": cells, **columns})
    features = {"image": {"_type": "Image"}}
    features |= {column: {"_type": "ClassLabel", "names": list(given)} for column, given in (names or {}).items()}
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


def write_folder(root, classes, make=colour, each=4):
    """classes: names; returns pixel arrays by class and file."""
    pixels = {}
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels[name, i] = make(100 * c + i)
            (root / name / f"{i}.png").write_bytes(encode(pixels[name, i]))
    return pixels


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(np.uint8).tobytes())
