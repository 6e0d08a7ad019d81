"""KuaiRand-Pure: 1.4 million videos shown, 8 signals and view time (zenodo.org).

The log keeps the 7,583 videos that were also shown at random. Train is 8 to 21 April 2022,
validation 22 to 28 April, test 29 April to 8 May. ``test=random`` tests on videos that were shown
at random in those days, so without the bias of the recommender. Play time and stay times are no
inputs, nor are the statistics of videos, which know the future.
"""

from __future__ import annotations

from mtlkit.data.datasets._kuairand import KuaiRand, members_of


class KuaiRandPure(KuaiRand):
    """The version of 7,583 videos."""

    title = "KuaiRand-Pure"
    members = members_of("pure")
    address = "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz"
    md5 = "0820331067a3784d9691136f772b35a7"
    download_size = "194 MB unpacked"
