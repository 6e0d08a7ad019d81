"""AliExpress: searches in up to 5 countries as domains; click and conversion (--from, a login).

Rows are those of ``train.csv`` and ``test.csv`` in a folder for each country, as the public script
of MTReclib writes them from the files of Tianchi 74690: 16 levels and 63 numbers of search, user
and item, without names. A tenth of each training file is validation. ``countries=NL:ES`` takes
some.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from mtlkit.data.datasets._log_table import LogTableSource, RawFiles
from mtlkit.data.table.join import stack_tables, with_constant
from mtlkit.data.table.read import Table
from mtlkit.data.table.spec import SplitSpec, TableSpec, TaskSpec
from mtlkit.settings import Settings

Country = Literal["ES", "FR", "NL", "RU", "US"]
COUNTRIES: tuple[str, ...] = get_args(Country)
LEVELS = tuple(f"categorical_{n}" for n in range(1, 17))
NUMBERS = tuple(f"numerical_{n}" for n in range(1, 64))
COUNTRY_OF = re.compile(rf"(?:aliexpress[_-])?({'|'.join(COUNTRIES)})(?:[_-].*)?", re.IGNORECASE)
"""Names of the folder of a country."""


def _as_countries(value: Any) -> Any:
    """Names of countries in one order."""
    names = [value] if isinstance(value, str) else value or ()
    return tuple(sorted({str(name).upper() for name in names}))


class AliExpress(LogTableSource):
    """The AliExpress search logs."""

    class Options(Settings):
        """Which countries."""

        countries: Annotated[tuple[Country, ...], BeforeValidator(_as_countries)] = Field(
            (), description="only these, e.g. NL:ES; none: all that are there"
        )

    options: Options
    title = "AliExpress: click and conversion in several countries"
    licence = "not stated: research data of Tianchi, whose terms you accept there"
    url = "https://tianchi.aliyun.com/dataset/74690"
    citation = (
        "Li et al., Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting Task "
        "Relationships in the Label Space, CIKM 2020, doi:10.1145/3340531.3412713"
    )
    unverified = (
        "not compared with the real files here, nor whether an id means the same in two countries"
    )
    download_size = "several GB, by a login"

    members = tuple(f"{country}/{part}.csv" for country in COUNTRIES for part in ("train", "test"))

    def member(self, path: PurePosixPath) -> str | None:
        """A file of this name in the folder of a country."""
        match = COUNTRY_OF.fullmatch(path.parent.name)
        name = f"{match[1].upper()}/{path.name.removesuffix('.gz')}" if match else None
        return name if name in self.members else None

    def needed(self, found: Collection[str]) -> Sequence[str]:
        """Both files of each country that is named, or of which there is one."""
        there = {name.partition("/")[0] for name in found} or COUNTRIES
        countries = self.options.countries or there
        return [name for name in self.members if name.partition("/")[0] in countries]

    def table(self, files: RawFiles) -> Table:
        """One row an item that a search showed."""
        parts = []
        for name in self.needed(files.paths):
            country, _, part = name.removesuffix(".csv").partition("/")
            columns = ("search_id", *LEVELS, *NUMBERS, "click", "conversion")
            rows = with_constant(files.read(name, columns=columns), "country", country)
            parts.append(with_constant(rows, "part", part))
        return stack_tables(parts)

    def spec(self) -> TableSpec:
        """A funnel of two steps, in the official splits."""
        is_one = len(self.options.countries) == 1
        return TableSpec(
            labels={
                "click": TaskSpec(description="the item was clicked"),
                "conversion": TaskSpec(description="the item was bought"),
            },
            funnel=("click", "conversion"),
            ids=LEVELS if is_one else ("country", *LEVELS),
            dense=NUMBERS,
            drop=("search_id", "country") if is_one else ("search_id",),
            roles={"session": "search_id"} | ({} if is_one else {"domain": "country"}),
            groups=("country",),
            split=SplitSpec(by="column", column="part"),
        )
