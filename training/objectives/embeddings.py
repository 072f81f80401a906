"""What an encoder computes of a batch, and an objective reads."""

from torch import Tensor


class Embeddings(dict[str, Tensor]):
    """The encoder's output for a batch: float32 columns of b rows, by name. A step in parts cuts and joins all of them alike.

    Those of every batch are unit rows in the joint space, and the projections before normalisation. The others belong to inputs
    that an objective asks for in its `needs`. `embeddings.NAME` is the column of that name.
    """

    image: Tensor  # [b, D]
    text: Tensor  # [b, D]
    image_projection: Tensor  # [b, D]
    text_projection: Tensor  # [b, D]
    strong_features: Tensor  # [b, V, F] of the image tower, for strong views
    strong_projection: Tensor  # [b, V, D]
    image_states: Tensor  # [b, P, S'] of the image tower, for P places of a square grid
    masked_states: Tensor  # [b, P, S'] of the image tower, for a view of which it does not see some places
    text_states: Tensor  # [b, L, S] of the text tower, of captions with masked words
    other_projection: Tensor  # [b, D], of reworded captions
    more_projection: Tensor  # [b, K, D], of other captions of the sample
    label_projection: Tensor  # [b, K, D], of label columns

    def __init__(self, image: Tensor, text: Tensor, image_projection: Tensor, text_projection: Tensor, **others: Tensor):
        super().__init__(image=image, text=text, image_projection=image_projection, text_projection=text_projection, **others)

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"the encoder gives no column '{name}'; it gives {', '.join(self)}, as `needs` asks for")

    def _replace(self, **columns: Tensor) -> "Embeddings":
        """The same with other columns."""
        return Embeddings(**{**self, **columns})
