"""Ali-CCP: 85 million items shown in a shop; click and purchase (a mirror, or --from, a login).

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

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BeforeValidator, Field, model_validator

from mtlkit.data.datasets._source import (
    Progress,
    StreamedSource,
    no_progress,
    note_files,
    read_source,
    write_source,
)
from mtlkit.data.splits import Dataset
from mtlkit.data.storage import atomic_folder, read_manifest, write_manifest
from mtlkit.errors import MissingError, UsageError
from mtlkit.settings import Settings
from mtlkit.spec import digest

if TYPE_CHECKING:
    from mtlkit.data.ali_ccp.protocols import Request
    from mtlkit.data.ali_ccp.simulate import Simulation
    from mtlkit.data.download import Downloaded

PAGE = "https://tianchi.aliyun.com/dataset/408"
TRY_OUT = "mtlkit bench -d 'ali-ccp[simulate=1000000]'"
FROM = "mtlkit fetch ali-ccp --from DIR"


def _field_names(value: Any) -> Any:
    """The names of fields as typed, from what the brackets made of them.

    There a number may have become an int, and 109_14 the int 10914.
    """
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    names = [str(name).strip() for name in values]
    return tuple(_with_underscore(name) for name in names)


def _with_underscore(name: str) -> str:
    """``10914`` is ``109_14``; other names stay."""
    lost_it = len(name) == 5 and name.endswith("14")
    return f"{name[:3]}_14" if lost_it else name


class AliCcp(StreamedSource):
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
            """Refuse fields that the protocol lacks."""
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
    # One pass, as a second one overfits rare ids. Rare ids see few steps, so theirs are large.
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
        """The options that decide the prepared data.

        That is all but ``max_bad_rows``, and the simulator's only where it is used.
        """
        values = super().resolved_options()
        del values["max_bad_rows"]
        if not self.options.simulate:
            for key in ("simulate", "purchase_rate", "seed"):
                del values[key]

        # Fields in another order give the same data, and a count left out is the protocol's.
        request = self._request()
        protocol = request.protocol
        selected = {*protocol.ids, *protocol.bags, *protocol.dense}
        values["fields"] = sorted(selected) if self.options.fields else []
        values["min_count"] = request.min_count
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
        """Refuse to download the real data, which is large; simulated data is made on demand.

        Raises:
            MissingError: The real data was not fetched.
        """
        if self._source(home) is None:
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
        """Simulate, note where the user's files lie, or download the mirror or the signed links.

        Raises:
            UsageError: ``origin`` does not exist, or the data is simulated.
            MissingError: The files cannot be had.
        """
        if self.options.simulate:
            if origin is not None:
                raise UsageError("Simulated data takes no --from.", f"{FROM}, without simulate")
            return self._simulate(home, force, progress)

        # What the user names now counts more than what was fetched before.
        raw = self._raw_folder(home)
        if origin is not None:
            label = str(origin.expanduser().resolve())
            return write_source(raw, _brought_source(origin, label))
        if self.links:
            return self._download_links(raw, force, progress)

        # The user's files are read again under --force; the mirror is downloaded again.
        source = _read_source(raw)
        if source is not None and not force:
            return None
        if source is not None and "path" in source:
            again = _brought_source(Path(source["path"]), source["origin"])
            return write_source(raw, again | {"downloads": source.get("downloads", [])})
        return self._download_mirror(raw, force, progress)

    def _raw_folder(self, home: Path) -> Path:
        return home / self.name / "raw"

    def _source(self, home: Path) -> dict[str, Any] | None:
        """Where the raw data of these options lie; None if they were not fetched.

        ``kind`` is ``simulated``, ``official`` or ``mirror``, ``origin`` a text for people.
        """
        if self.options.simulate:
            folder = self._simulated_folder(home)
            origin = f"the simulator, {folder}"
            return {"kind": "simulated", "origin": origin, "path": str(folder)}
        return _read_source(self._raw_folder(home))

    def _simulation(self) -> Simulation:
        from mtlkit.data.ali_ccp.simulate import Simulation

        return Simulation(
            rows=self.options.simulate,
            purchase_rate=self.options.purchase_rate,
            seed=self.options.seed,
        )

    def _simulated_folder(self, home: Path) -> Path:
        from mtlkit.data.ali_ccp.simulate import VERSION

        key = digest([VERSION, asdict(self._simulation())])[:8]
        return home / self.name / "simulated" / f"{self.options.simulate}-{key}"

    def _simulate(self, home: Path, force: bool, progress: Progress) -> None:
        from mtlkit.data.ali_ccp.simulate import MARK, write_archives

        folder = self._simulated_folder(home)
        if force or not (folder / MARK).exists():
            write_archives(folder, self._simulation(), progress)

    def _download_mirror(self, raw: Path, force: bool, progress: Progress) -> None:
        """Download the public mirror, which suits one protocol only."""
        from mtlkit.data.ali_ccp.mirror import FILES, download_mirror

        protocol = self.options.protocol
        if protocol != "aitm":
            raise MissingError(
                f"The public mirror holds Ali-CCP as the aitm protocol has it, so {protocol} needs "
                "the official archives: download sample_train.tar.gz and sample_test.tar.gz from "
                f"{PAGE} (login).",
                f"{FROM} --protocol {protocol}",
            )
        downloads = [_download_note(file) for file in download_mirror(raw, force, progress)]
        source = {
            "kind": "mirror",
            "origin": "the public mirror",
            "files": sorted(FILES.values()),
            "downloads": downloads,
        }
        write_source(raw, source)

    def _download_links(self, raw: Path, force: bool, progress: Progress) -> None:
        """Download the official archives from the user's signed links."""
        from mtlkit.data.download import EXPIRED, DownloadError, download

        # An archive that is kept keeps its note.
        earlier = _read_source(raw) or {}
        notes = {note["file"]: note for note in earlier.get("downloads", [])}
        for split, link in self.links.items():
            archive = raw / f"sample_{split}.tar.gz"
            if archive.exists() and not force:
                continue

            # The signature is a secret: it must not come into a message or a file.
            scheme, host, path, _, _ = urlsplit(link)
            unsigned = urlunsplit((scheme, host, path, "", ""))
            try:
                file = download(link, archive, progress=progress, shown_url=unsigned)
                notes[archive.name] = _download_note(file)
            except DownloadError as error:
                if error.status not in EXPIRED:
                    raise
                raise MissingError(
                    f"The signed link --url-{split} has expired or is wrong: "
                    f"the server answers {error.status}.",
                    f"log in at {PAGE}, copy a fresh link of {archive.name}, "
                    "and run the command again: what has come is kept",
                ) from None
        source = _brought_source(raw, "signed links")
        write_source(raw, source | {"downloads": list(notes.values())})

    def provenance(self, home: Path) -> str | None:
        """Where the raw files come from, and what was left out."""
        source = self._source(home) or {}
        manifest = read_manifest(self.folder(home)) or {}
        lines = [str(source.get("origin")), *_left_out(manifest.get("details", {}))]
        return "\n".join(lines)

    def folder(self, home: Path) -> Path:
        """Where the prepared data of these options and of the raw files fetched last lie."""
        # Simulated files follow from the options; others are told apart by name, size and date.
        identity = None
        if not self.options.simulate:
            source = self._source(home) or {}
            identity = [source.get("kind"), source.get("files")]
        key = digest([self.preparation, self.resolved_options(), identity])[:12]
        return home / self.name / "prepared" / key

    def build(self, home: Path, folder: Path, progress: Progress = no_progress) -> None:
        """Write the splits straight into the folder: they need not fit in memory.

        Raises:
            MissingError: The raw files are not there, or do not suit the options.
        """
        source = self._source(home)
        if source is None:
            raise MissingError(
                f"Ali-CCP is not in the data folder {home}.", f"mtlkit fetch ali-ccp, or {FROM}"
            )

        # The mirror was made with a protocol and a count that cannot be undone.
        from_mirror = source["kind"] == "mirror"
        suits_mirror = self.options.protocol == "aitm" and self.options.min_count in (None, 12)
        if from_mirror and not suits_mirror:
            raise MissingError(
                "What was fetched is the public mirror, which holds Ali-CCP as the aitm protocol "
                "has it, ids seen 12 times: other protocols and counts need the official archives.",
                f"{FROM} --protocol {self.options.protocol}",
            )

        if "path" in source and source["kind"] != "simulated":
            _check_unchanged(source)

        with atomic_folder(folder) as partial:
            if from_mirror:
                raw = Path(source.get("path", self._raw_folder(home)))
                dataset, splits = self._build_from_mirror(raw, partial, progress)
            else:
                dataset, splits = self._build_from_archives(source, partial, progress)
            _check_downloads(source, dataset.details["files"])
            self._check_simulated_rows(dataset.details["texts"])
            write_manifest(partial, dataset, self.resolved_options(), splits)

    def _build_from_mirror(
        self, raw: Path, folder: Path, progress: Progress
    ) -> tuple[Dataset, dict[str, Any]]:
        """Write the arrays; return the data set without them, and the manifest's splits."""
        from mtlkit.data.ali_ccp.mirror import prepare_mirror

        hint = "mtlkit fetch ali-ccp --force"
        return prepare_mirror(raw, folder, self.name, self._request(), progress, hint)

    def _build_from_archives(
        self, source: Mapping[str, Any], folder: Path, progress: Progress
    ) -> tuple[Dataset, dict[str, Any]]:
        """The same from the official or the simulated archives."""
        from mtlkit.data.ali_ccp.archives import find_source
        from mtlkit.data.ali_ccp.prepare import prepare_archives

        archives = find_source(Path(source["path"]), FROM)
        return prepare_archives(archives, folder, self.name, self._request(), progress, FROM)

    def _check_simulated_rows(self, texts: Mapping[str, Any]) -> None:
        """Check that simulated archives hold as many rows as were asked for."""
        if not self.options.simulate:
            return
        for split in ("train", "test"):
            rows = texts[f"{split}-skeleton"]["lines"]
            simulated_rows = self._simulation().rows_of(split)
            if rows != simulated_rows:
                raise MissingError(
                    f"The simulated {split} archive has {rows:,} rows, not {simulated_rows:,}: "
                    "it was replaced.",
                    self._command(),
                )

    def _request(self) -> Request:
        from mtlkit.data.ali_ccp.protocols import PROTOCOLS, Request

        protocol = PROTOCOLS[self.options.protocol]
        if self.options.fields:
            protocol = protocol.select(self.options.fields)
        min_count = self.options.min_count or protocol.min_count
        return Request(protocol, min_count, self.options.sample, self.options.max_bad_rows)


def _brought_source(origin: Path, label: str) -> dict[str, Any]:
    """The note of where official files or the mirror's lie, and of what tells them from others."""
    from mtlkit.data.ali_ccp.archives import find_source
    from mtlkit.data.ali_ccp.mirror import FILES

    origin = origin.expanduser()
    folder = origin.parent if origin.is_file() else origin
    of_mirror = [folder / name for name in FILES.values()]
    is_mirror = all(file.is_file() for file in of_mirror)
    official = () if is_mirror else find_source(origin, FROM).files
    files = note_files(of_mirror if is_mirror else official)
    kind = "mirror" if is_mirror else "official"
    if not is_mirror and origin.is_file():
        folder = official[0].parent
    return {"kind": kind, "origin": label, "path": str(folder.resolve()), "files": files}


def _download_note(file: Downloaded) -> dict[str, Any]:
    """What is noted of a download, to compare the file with when it is read."""
    return {"file": file.path.name, "url": file.url, "bytes": file.bytes, "sha256": file.sha256}


def _check_unchanged(source: Mapping[str, Any]) -> None:
    """Raise a :class:`MissingError` where an official file has gone, or has another size or date
    than when it was fetched: the prepared data are named after these.
    """
    path = source["path"]
    if _brought_source(Path(path), source["origin"])["files"] != source["files"]:
        raise MissingError(
            f"The files of Ali-CCP in {path} have changed since they were fetched.",
            f"mtlkit fetch ali-ccp --from {shlex.quote(path)}",
        )


def _check_downloads(source: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> None:
    """Raise a :class:`MissingError` for a file that is not what was noted of its download."""
    noted = {note["file"]: note["sha256"] for note in source.get("downloads", [])}
    for file in files:
        name, actual = file["file"], file["sha256"]
        if noted.get(name, actual) != actual:
            hint = "mtlkit fetch ali-ccp --force"
            if source["kind"] == "official":
                hint += " --url-train URL --url-test URL, with fresh links"
            raise MissingError(
                f"{name} is not the file that was downloaded: "
                f"its sha256 is {actual}, not {noted[name]}.",
                hint,
            )


def _read_source(raw: Path) -> dict[str, Any] | None:
    """The note, or None if there is none that can be read."""
    source = read_source(raw)
    is_note = source is not None and source.get("kind") in ("official", "mirror")
    return source if is_note else None


def _left_out(details: Mapping[str, Any]) -> list[str]:
    """The rows that preparation left out, a line for each text and split that has some."""
    lines = []
    for text, counts in details.get("texts", {}).items():
        reasons = []
        for reason in ("dirty", "malformed"):
            if counts.get(reason):
                # A dirty row may be noted with what is wrong about it.
                noted = counts[f"first {reason} lines"][:3]
                numbers = [entry["line"] if isinstance(entry, dict) else entry for entry in noted]
                shown = ", ".join(map(str, numbers))
                reasons.append(f"{counts[reason]:,} {reason} rows (lines {shown}...)")
        if reasons:
            lines.append(f"left out of {text}: {' and '.join(reasons)}")
        if counts.get("no header"):
            lines.append(f"{text} has no header line: its columns are taken in the known order")

    for split, counts in details.get("rows without common features", {}).items():
        rows, first_lines = counts["rows"], counts["first lines"][:3]
        lines.append(
            f"left out of {split}: {rows:,} rows without common features (lines {first_lines})"
        )
    return lines
