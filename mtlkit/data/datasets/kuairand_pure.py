"""KuaiRand-Pure: 1.4 million videos shown, 8 signals and view time (zenodo.org).

The log keeps the 7,583 videos that were also shown at random. Train is 8 to 21 April 2022,
validation 22 to 28 April, test 29 April to 8 May. ``test=random`` tests on videos that were shown
at random in those days, so without the bias of the recommender. Play time and stay times are no
inputs, nor are the statistics of videos, which know the future.
"""

from __future__ import annotations

from typing import ClassVar

from mtlkit.data.datasets._kuairand import KuaiRand, members_of


class KuaiRandPure(KuaiRand):
    """The version of 7,583 videos."""

    title: ClassVar[str] = "KuaiRand-Pure"
    members: ClassVar[tuple[str, ...]] = members_of("pure")
    address: ClassVar[str | None] = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
    md5: ClassVar[str | None] = "0820331067a3784d9691136f772b35a7"
    download_size: ClassVar[str] = "194 MB unpacked"
