"""What a pretrained head says of our classes, before anything is learnt.

ImageNet's classes are finer than ours: many breeds of dogs, a few cats. Their
probabilities add up to the answer for a kind.
"""

from typing import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

# The first and the last WordNet id of the kind among ImageNet's 1000 classes,
# which are in the order of their ids: 118 breeds of domestic dogs, and five
# domestic cats.
_KINDS = {'dog': ('n02085620', 'n02113978'), 'cat': ('n02123045', 'n02124075')}


def grouping(theirs: Sequence[str], ours: Sequence[str]
             ) -> Float[np.ndarray, 'theirs ours'] | None:
  """Which of a head's classes count as which of ours.

  Args:
    theirs: WordNet ids or other names, in the order of the head's outputs.
    ours: names of classes: `cat`, `dog`, or one of theirs; case and plural do
      not matter.

  Returns:
    The logarithm of 1 / n for the n classes that belong to one of ours, -inf
    for the others; None where some class of ours has none.
  """
  belongs = np.array([[_is_a(their, our) for our in ours] for their in theirs])
  counts = belongs.sum(axis=0)
  if not counts.all() or (belongs.sum(axis=1) > 1).any():
    return None
  return np.where(belongs, -np.log(counts), -np.inf).astype(np.float32)


def _is_a(their: str, our: str) -> bool:
  their, our = (name.casefold().removesuffix('s') for name in (their, our))
  first, last = _KINDS.get(our, (our, our))
  return their == our or first <= their <= last


def grouped_logits(logits: Float[Array, 'b theirs'],
                   groups: Float[Array, 'theirs ours']
                   ) -> Float[Array, 'b ours']:
  """Logits of our classes, for which each of them is equally likely a priori.

  Bayes' rule: a head that was trained on as many photos of each of its classes
  gives p(photo | class) up to a factor; of a kind, that is the mean over its
  classes. The sum instead would say that what has more breeds is more likely.
  """
  return jax.nn.logsumexp(logits[:, :, None] + jnp.asarray(groups), axis=1)
