"""Raw text and archives by hand."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path


def features(*items: tuple[str, object, object]) -> bytes:
    return b"\x01".join(f"{field}\x02{id}\x03{value}".encode() for field, id, value in items)


def skeleton(
    number: int, click: object, purchase: object, key: str, *items: tuple[str, object, object]
) -> bytes:
    return f"{number},{click},{purchase},{key},{len(items)},".encode() + features(*items) + b"\n"


def common(key: str, *items: tuple[str, object, object]) -> bytes:
    return f"{key},{len(items)},".encode() + features(*items) + b"\n"


def small_texts(rows: int = 60) -> dict[str, bytes]:
    """Well-formed texts with ids that are seen often enough."""
    texts = {}
    for split in ("train", "test"):
        lines = [
            skeleton(
                n,
                n % 2,
                int(n % 4 == 1),
                f"{n % 5:016x}",
                ("205", 7 + n % 2, 1.0),
                ("206", 3, "1.0"),
            )
            for n in range(1, rows + 1)
        ]
        users = [
            common(f"{k:016x}", ("101", 50 + k, 1.0), ("109_14", 4, 0.69315), ("109_14", 5, 2))
            for k in range(5)
        ]
        texts[f"sample_skeleton_{split}.csv"] = b"".join(lines)
        texts[f"common_features_{split}.csv"] = b"".join(users)
    return texts


def tar_bytes(
    members: list[tuple[tarfile.TarInfo, bytes]], format: int = tarfile.GNU_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_archives(
    folder: Path,
    texts: dict[str, bytes],
    suffix: str = "tar.gz",
    inner: str = "",
    format: int = tarfile.GNU_FORMAT,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        names = [name for name in texts if split in name]
        content = tar_bytes(
            [(tarfile.TarInfo(inner + name), texts[name]) for name in names], format
        )
        packed = content if suffix == "tar" else gzip.compress(content, 1)
        (folder / f"sample_{split}.{suffix}").write_bytes(packed)
    return folder
