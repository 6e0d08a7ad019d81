"""From a batch to x, the embedded features that an architecture reads."""

from __future__ import annotations

from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._tables import EmbeddingTables
from mtlkit.models._types import Batch


class FieldEmbedding(EmbeddingTables):
    """Embeds all features of a batch; the arguments are those of ``EmbeddingTables``.

    It is the tables with a ``forward``. The two are apart because look-ups and embedded batches
    know the tables, and ``forward`` makes an embedded batch: in one file they would be a circle.
    """

    def forward(self, batch: Batch) -> EmbeddedBatch:
        """x of a batch, which is not formed before a layer asks for it."""
        return EmbeddedBatch(self, batch)
