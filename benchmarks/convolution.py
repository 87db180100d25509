"""Single convolutions, in GFLOP/s: python -m benchmarks.convolution

For each: forward, the gradient of the input, the gradient of the kernel; by
ours, by XLA's own, and by torch where it is installed. In turns, in one
process; the median of the turns.
"""

import statistics
import time
from typing import Callable

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from catsdogs.convolution import conv2d

_BATCH, _TURNS = 16, 9
# Pixels, channels in and out, kernel, stride: those of ResNet-50.
_SHAPES = [(56, 64, 64, 3, 1), (28, 128, 128, 3, 1), (14, 256, 256, 3, 1),
           (56, 128, 128, 3, 2), (56, 64, 256, 1, 1), (56, 256, 64, 1, 1),
           (224, 3, 64, 7, 2)]


def _ours(x, kernel, stride):
  return conv2d(x, kernel, stride=stride)


def _xla(x, kernel, stride):
  padding = kernel.shape[0] // 2
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), [(padding, padding)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _by_jax(function: Callable, x, kernel, g, stride) -> list[Callable]:
  """Forward and both gradients, as calls without arguments."""
  parts = [
      jax.jit(lambda x, k, g: function(x, k, stride)),
      jax.jit(lambda x, k, g: jax.vjp(
          lambda x: function(x, k, stride), x)[1](g)),
      jax.jit(lambda x, k, g: jax.vjp(
          lambda k: function(x, k, stride), k)[1](g))]
  return [lambda part=part: jax.block_until_ready(part(x, kernel, g))
          for part in parts]


def _by_torch(x, kernel, g, stride) -> list[Callable]:
  import torch
  last = torch.channels_last
  x, g = (torch.from_numpy(np.array(a)).permute(0, 3, 1, 2) for a in (x, g))
  weight = torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1)
  weight, padding = weight.contiguous(memory_format=last), kernel.shape[0] // 2

  def backward(mask):
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0],
        1, mask)

  return [lambda: torch.nn.functional.conv2d(x, weight, None, stride, padding),
          lambda: backward([True, False, False]),
          lambda: backward([False, True, False])]


def main() -> None:
  try:
    import torch  # pylint: disable=unused-import
    with_torch = True
  except ImportError:
    with_torch = False
  for pixels, channels, features, size, stride in _SHAPES:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal(
        (_BATCH, pixels, pixels, channels), np.float32))
    kernel = jnp.asarray(random.standard_normal(
        (size, size, channels, features), np.float32))
    g = jnp.ones_like(_ours(x, kernel, stride))
    contenders = {'ours': _by_jax(_ours, x, kernel, g, stride),
                  'xla': _by_jax(_xla, x, kernel, g, stride)}
    if with_torch:
      contenders['torch'] = _by_torch(x, kernel, g, stride)
    gflop = 2e-9 * g.size * channels * size * size
    seconds = {}
    for _ in range(_TURNS):
      for name, parts in contenders.items():
        for number, part in enumerate(parts):
          started = time.perf_counter()
          part()
          seconds.setdefault((name, number), []).append(
              time.perf_counter() - started)
    speeds = [f'{name} ' + ', '.join(
        f'{gflop / statistics.median(seconds[name, number]):.0f}'
        for number in range(3)) for name in contenders]
    print(f'{pixels} px, {channels} to {features}, {size}x{size}, stride '
          f'{stride}: ' + '; '.join(speeds), flush=True)


if __name__ == '__main__':
  main()
