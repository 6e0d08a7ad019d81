"""Ali-CCP: 85 million recommendations of a shop with clicks and purchases, the field's benchmark.

Ma et al., Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click Conversion
Rate, SIGIR 2018, https://arxiv.org/abs/1804.07931. The raw data has four text files in two
archives; ``protocol`` says how they become splits. ``aitm``: 18 ids, counts of 12, a tenth of train
held out. ``rechub``: 23 ids and 8 numbers, counts of 10, the test file halved. ``full``: every
field, several ids of a field kept as a weighted bag, a tenth of sessions held out.
``simulate=ROWS`` writes archives of the same format from a planted model and prepares those.

Deviations: a field is read from the file that it belongs to, and counted where it appears in the
other one (never, in the real data); scales of numbers are fitted on train, where Torch-RecHub's
come from all splits; kept ids are numbered by raw id under ``aitm`` (its public code numbers them
in the order of a set); the tenth held out is drawn by a hash of the line number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, model_validator

from mtlkit.data.datasets._source import DatasetSource, Progress, no_progress
from mtlkit.data.splits import Dataset
from mtlkit.data.storage import read_dataset, read_manifest, write_manifest, written
from mtlkit.errors import MissingError, UsageError
from mtlkit.settings import Settings
from mtlkit.spec import digest

if TYPE_CHECKING:
    from mtlkit.data.ali_ccp.protocols import Request
    from mtlkit.data.ali_ccp.simulate import Simulation

SOURCE = "source.json"
PAGE = "https://tianchi.aliyun.com/dataset/408"
TRY_OUT = "mtlkit bench -d 'ali-ccp[simulate=1000000]'"
FROM = "mtlkit fetch ali-ccp --from DIR"


def _field_names(value: Any) -> Any:
    """Names as typed: in brackets a number may have become an int, and 109_14 the int 10914."""
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    names = []
    for typed in values:
        name = str(typed).strip()
        if len(name) == 5 and name.endswith("14"):
            name = f"{name[:3]}_14"
        names.append(name)
    return tuple(names)


class AliCcp(DatasetSource):
    """Ali-CCP, from the public mirror, the official archives, or the simulator."""

    class Options(Settings):
        """Protocol, and what of the data is taken."""

        protocol: Literal["aitm", "rechub", "full"] = Field(
            "aitm", description="how raw data becomes splits"
        )
        fields: Annotated[tuple[str, ...], BeforeValidator(_field_names)] = Field(
            (), description="only these fields, e.g. 101:205:206; none: all of the protocol"
        )
        min_count: int | None = Field(
            None,
            ge=1,
            description="keep ids seen so often on train; none: the protocol's, 12 or 10",
        )
        sample: float = Field(
            1.0, gt=0, le=1, description="share of users to keep, by a hash of the user"
        )
        max_bad_rows: int = Field(
            1000, ge=0, description="malformed rows to leave out before giving up"
        )
        simulate: int = Field(
            0, ge=0, le=100_000_000, description="simulated training rows; 0: the real data"
        )
        purchase_rate: float = Field(
            0.0055, gt=0, lt=1, description="purchases per click of simulated data"
        )
        seed: int = Field(0, ge=0, description="of the simulator")

        @model_validator(mode="after")
        def _fields_exist(self) -> AliCcp.Options:
            from mtlkit.data.ali_ccp.protocols import PROTOCOLS

            PROTOCOLS[self.protocol].select(self.fields)
            return self

    options: Options

    title: ClassVar[str] = "Ali-CCP: Alibaba click and conversion prediction"
    licence: ClassVar[str] = (
        "not stated: research data of Alibaba's Tianchi, whose terms you accept there; "
        "never redistributed by mtlkit"
    )
    url: ClassVar[str] = PAGE
    citation: ClassVar[str] = (
        "Ma et al., Entire Space Multi-Task Model, SIGIR 2018, arXiv:1804.07931"
    )
    # one pass: a second one overfits rare ids, which want large steps as they come a few times only
    training: ClassVar[dict[str, Any]] = {
        "epochs": 1,
        "batch_size": 4096,
        "lr": 1e-3,
        "embedding_lr": 1e-2,
    }
    download_size: ClassVar[str] = "several GB from a public mirror, or 9 GB of official archives"

    def __init__(self, name: str, options: Settings) -> None:
        super().__init__(name, options)
        self.links: dict[str, str] = {}

    def resolved_options(self) -> dict[str, Any]:
        """What decides the prepared data: without ``max_bad_rows``, and the simulator's options
        only with it.
        """
        values = super().resolved_options()
        del values["max_bad_rows"]
        if not self.options.simulate:
            for key in ("simulate", "purchase_rate", "seed"):
                del values[key]
        protocol = self._request().protocol
        chosen = {*protocol.ids, *protocol.bags, *protocol.dense}
        values["fields"] = sorted(chosen) if self.options.fields else []
        values["min_count"] = self._request().min_count
        return values

    def use_links(self, links: dict[str, str]) -> None:
        """Take the official archives from signed links.

        Raises:
            UsageError: One of the two is missing, or the data is simulated.
        """
        if links and (set(links) != {"train", "test"} or self.options.simulate):
            raise UsageError(
                "The official archives need two links.",
                "mtlkit fetch ali-ccp --url-train URL --url-test URL",
            )
        self.links = links

    def check_unasked(self, home: Path) -> None:
        """Simulated data is made on demand; the real data is too large for that."""
        if not self.options.simulate and _read_source(self._raw(home)) is None:
            raise MissingError(
                f"Ali-CCP is not in the data folder {home}. "
                f"Fetching it takes {self.download_size}, and 30 GB of disk or more.",
                f"mtlkit fetch ali-ccp; to try things out on simulated data: {TRY_OUT}",
            )

    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Simulate, note where the user's files lie, or download the mirror or the signed links."""
        if self.options.simulate:
            if origin is not None:
                raise UsageError("Simulated data takes no --from.", f"{FROM}, without simulate")
            return self._simulate(home, force, progress)
        raw = self._raw(home)
        if origin is not None:
            return _write_source(raw, _note_official(origin, str(origin.expanduser().resolve())))
        if self.links:
            return self._download_links(raw, force, progress)
        noted = _read_source(raw)
        if noted is not None and not force:
            return None
        # --force reads the user's files again.
        if noted is not None and noted["kind"] == "official":
            return _write_source(raw, _note_official(Path(noted["path"]), noted["origin"]))
        return self._download_mirror(raw, force, progress)

    def _raw(self, home: Path) -> Path:
        return home / self.name / "raw"

    def _simulation(self) -> Simulation:
        from mtlkit.data.ali_ccp.simulate import Simulation

        return Simulation(
            rows=self.options.simulate,
            purchase_rate=self.options.purchase_rate,
            seed=self.options.seed,
        )

    def _simulated(self, home: Path) -> Path:
        from dataclasses import asdict

        from mtlkit.data.ali_ccp.simulate import VERSION

        key = digest([VERSION, asdict(self._simulation())])[:8]
        return home / self.name / "simulated" / f"{self.options.simulate}-{key}"

    def _simulate(self, home: Path, force: bool, progress: Progress) -> None:
        from mtlkit.data.ali_ccp.simulate import MARK, write_archives

        folder = self._simulated(home)
        if force or not (folder / MARK).exists():
            write_archives(folder, self._simulation(), progress)

    def _download_mirror(self, raw: Path, force: bool, progress: Progress) -> None:
        from mtlkit.data.ali_ccp.mirror import FILES, download_mirror

        if self.options.protocol != "aitm":
            raise MissingError(
                f"The public mirror holds Ali-CCP as the aitm protocol has it, "
                f"so {self.options.protocol} needs the official archives: download "
                f"sample_train.tar.gz and sample_test.tar.gz from {PAGE} (login).",
                f"{FROM} --protocol {self.options.protocol}",
            )
        downloads = [
            {"file": file.path.name, "url": file.url, "bytes": file.bytes, "sha256": file.sha256}
            for file in download_mirror(raw, force, progress)
        ]
        facts = {
            "kind": "mirror",
            "origin": "the public mirror",
            "files": sorted(FILES.values()),
            "downloads": downloads,
        }
        _write_source(raw, facts)

    def _download_links(self, raw: Path, force: bool, progress: Progress) -> None:
        from mtlkit.data.download import DownloadError, download

        for split, link in self.links.items():
            path = raw / f"sample_{split}.tar.gz"
            if path.exists() and not force:
                continue
            without_signature = urlunsplit((*urlsplit(link)[:3], "", ""))  # which is a secret
            try:
                download(link, path, progress=progress, shown_url=without_signature)
            except DownloadError as error:
                if error.status not in (401, 403, 410):
                    raise
                raise MissingError(
                    f"The signed link --url-{split} has expired or is wrong: "
                    f"the server answers {error.status}.",
                    f"log in at {PAGE}, copy a fresh link of sample_{split}.tar.gz, "
                    "and run the command again: what has come is kept",
                ) from None
        _write_source(raw, _note_official(raw, "signed links"))

    def provenance(self, home: Path) -> str | None:
        """Where the raw files come from, and what was left out."""
        manifest = read_manifest(self.folder(home)) if self.is_ready(home) else None
        if self.options.simulate:
            origin = f"the simulator, {self._simulated(home)}"
        else:
            source = _read_source(self._raw(home)) or {}
            origin = str(source.get("origin"))
        return "\n".join([origin, *_left_out(manifest["details"] if manifest else {})])

    def folder(self, home: Path) -> Path:
        """Where the prepared data of these options and of the raw files noted last lie."""
        identity = None
        if not self.options.simulate:
            source = _read_source(self._raw(home)) or {}
            identity = [source.get("kind"), source.get("files")]
        key = digest([self.preparation, self.resolved_options(), identity])[:12]
        return home / self.name / "prepared" / key

    def prepare(self, home: Path) -> Dataset:
        """Build the splits on disk and open them."""
        folder = self.folder(home)
        self.build(home, folder)
        return read_dataset(folder)

    def build(self, home: Path, folder: Path, progress: Progress = no_progress) -> None:
        """Write the splits straight to their files: they need not fit in memory."""
        source = self._fetched_source(home)
        if source["kind"] == "mirror":
            from mtlkit.data.ali_ccp.mirror import prepare_mirror

            hint = "mtlkit fetch ali-ccp --force"
            with written(folder) as partial:
                dataset, splits = prepare_mirror(
                    self._raw(home), partial, self.name, self._request(), progress, hint
                )
                write_manifest(partial, dataset, self.resolved_options(), splits)
            return

        from mtlkit.data.ali_ccp.archives import find_source
        from mtlkit.data.ali_ccp.prepare import prepare_archives

        with written(folder) as partial:
            archives = find_source(Path(source["path"]), FROM)
            dataset, splits = prepare_archives(
                archives, partial, self.name, self._request(), progress, FROM
            )
            write_manifest(partial, dataset, self.resolved_options(), splits)

    def _fetched_source(self, home: Path) -> dict[str, Any]:
        """What there is to prepare: the simulated archives, the user's, or the mirror.

        Raises:
            MissingError: There is nothing, or the mirror lacks what is asked for.
        """
        if self.options.simulate:
            return {"kind": "official", "path": str(self._simulated(home))}
        source = _read_source(self._raw(home))
        if source is None:
            raise MissingError(
                f"Ali-CCP is not in the data folder {home}.", f"mtlkit fetch ali-ccp, or {FROM}"
            )
        is_aitm = self.options.protocol == "aitm" and self.options.min_count in (None, 12)
        if source["kind"] == "mirror" and not is_aitm:
            raise MissingError(
                "What was fetched is the public mirror, which holds Ali-CCP as the aitm protocol "
                "has it, ids seen 12 times: other protocols and counts need the official archives.",
                f"{FROM} --protocol {self.options.protocol}",
            )
        return source

    def _request(self) -> Request:
        from mtlkit.data.ali_ccp.protocols import PROTOCOLS, Request

        protocol = PROTOCOLS[self.options.protocol]
        if self.options.fields:
            protocol = protocol.select(self.options.fields)
        min_count = self.options.min_count or protocol.min_count
        return Request(protocol, min_count, self.options.sample, self.options.max_bad_rows)


def _note_official(origin: Path, label: str) -> dict[str, Any]:
    """Where the user's files lie, and what tells when one of them was replaced."""
    from mtlkit.data.ali_ccp.archives import find_source

    source = find_source(origin.expanduser(), FROM)
    files = []
    for file in source.files:
        stat = file.stat()
        files.append({"file": file.name, "bytes": stat.st_size, "changed": stat.st_mtime_ns})
    folder = source.files[0].parent if origin.is_file() else origin
    return {
        "kind": "official",
        "origin": label,
        "path": str(folder.expanduser().resolve()),
        "files": files,
    }


def _write_source(raw: Path, facts: Mapping[str, Any]) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    partial = raw / f".{SOURCE}"
    partial.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    partial.replace(raw / SOURCE)


def _read_source(raw: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads((raw / SOURCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(facts, dict) and facts.get("kind") in ("official", "mirror")
    return facts if is_ours else None


def _left_out(details: Mapping[str, Any]) -> list[str]:
    """One line a text that had dirty or malformed rows."""
    lines = []
    for name, counts in details.get("texts", {}).items():
        kinds = [kind for kind in ("dirty", "malformed") if counts.get(kind)]
        if kinds:
            left_out = " and ".join(_rows_left_out(counts, kind) for kind in kinds)
            lines.append(f"left out of {name}: {left_out}")
    for split, counts in details.get("rows without common features", {}).items():
        lines.append(
            f"left out of {split}: {counts['rows']:,} rows without common features "
            f"(lines {counts['first lines'][:3]})"
        )
    return lines


def _rows_left_out(counts: Mapping[str, Any], kind: str) -> str:
    """How many dirty or malformed rows a text has, and the first of them."""
    numbers = []
    for entry in counts[f"first {kind} lines"][:3]:
        numbers.append(str(entry["line"] if isinstance(entry, dict) else entry))
    return f"{counts[kind]:,} {kind} rows (lines {', '.join(numbers)}...)"
