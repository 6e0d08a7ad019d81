"""KuaiRand-1K: 11.7 million videos shown to 1,000 users, 8 signals and view time (zenodo.org).

The splits, inputs and labels are those of ``kuairand-pure``, of whose users 1,000 are here with all
the 4.4 million videos that they saw.
"""

from __future__ import annotations

from mtlkit.data.datasets._kuairand import KuaiRand, members_of


class KuaiRand1K(KuaiRand):
    """The version of 1,000 users."""

    title = "KuaiRand-1K"
    members = members_of("1k")
    address = "https://zenodo.org/records/10439422/files/KuaiRand-1K.tar.gz"
    md5 = "6b0b9c8222d67fcd4c676218edca3f1f"
    download_size = "4.3 GB unpacked"
