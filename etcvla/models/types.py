"""Array types of the model.

Axes, in this package and in `etcvla.train` (einsum equations use the same letters in lower case):

  B  batch                     D  model width           C  cameras
  T  query length              F  MLP width             I  image tokens
  S  key length                V  vocabulary            P  action horizon
  N  query heads               L  text length           A  action width
  K  key and value heads       M  target positions      R  noise samples
  G  query heads per key head  H  head width            Q  state width

In the fields of a batch, K counts action chunks and H is an image's height; see `etcvla.batch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

Batch = Mapping[str, jax.Array]  # see `etcvla.batch`
Params = Mapping[str, Any]  # nested dicts of float32 arrays

Scalar = Float[Array, ""]
Index = Int[Array, ""]
Flag = Bool[Array, ""]
AnyShape = Float[Array, "*shape"]
Vectors = Float[Array, "*B D"]
Logits = Float[Array, "*B V"]

Tokens = Float[Array, "B T D"]
ImageTokens = Float[Array, "B I D"]
Queries = Float[Array, "B T N H"]
Keys = Float[Array, "B S K H"]  # values too
TokenIds = Int[Array, "B T"]
Positions = Int[Array, "B T"]

CameraMask = Bool[Array, "B C"]
ImageMask = Bool[Array, "B I"]
QueryMask = Bool[Array, "B T"]
AttentionMask = Bool[Array, "B T S"]
TextInts = Int[Array, "B L"]
TextMask = Bool[Array, "B L"]

State = Float[Array, "B Q"]
Chunks = Float[Array, "B P A"]
NoisyChunks = Float[Array, "B R P A"]
FlowTimes = Float[Array, "B R"]
StepMask = Bool[Array, "B K P"]  # of K action chunks
ExpertKeyMask = Bool[Array, "B K S"]

KVCache = tuple[Array, Array]  # keys and values of stream 0, each float[depth, B, S, K, H]
Mask = Array | tuple[Array, Array]  # bool[B, T, S] for all layers, or for (global, local) layers
RopeTables = tuple[Float[Array, "B T H/2"], Float[Array, "B T H/2"]]  # sine and cosine
Shape = tuple[int, ...]
