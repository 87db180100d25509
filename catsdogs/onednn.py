"""oneDNN's convolution and matrix product, as XLA for CPU carries them.

jaxlib's wheels for Linux on x86-64 are built with oneDNN, and XLA's runtime
executes the custom calls `__onednn$convolution` and `__onednn$matmul`. Only the
pass that puts them in the place of XLA's own operations is left out of the
build, so no flag turns them on; here they are called by name. They take the
form of xla/service/cpu/onednn_config.proto, which is no public interface:
hence the list of versions that the tests ran with, and nothing but XLA's own
operations with any other.
"""

import functools
import json
import os
import pathlib
import platform
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
from jaxtyping import Array, Float
import jaxlib.version

_TESTED_JAXLIB = ('0.10.2',)


@functools.cache
def is_available() -> bool:
  """Whether this process can call oneDNN.

  Not on several devices: XLA does not know how to divide a custom call. And
  not without AVX2, where oneDNN has no fast convolution. CATSDOGS_ONEDNN=0 in
  the environment turns it off.
  """
  available = (
      os.environ.get('CATSDOGS_ONEDNN') != '0' and sys.platform == 'linux'
      and platform.machine() == 'x86_64'
      and jaxlib.version.__version__ in _TESTED_JAXLIB
      and jax.default_backend() == 'cpu' and jax.device_count() == 1
      and 'avx2' in pathlib.Path('/proc/cpuinfo').read_text().split())
  if available:
    # XLA would take these calls for others when it writes an executable to the
    # persistent cache, and read past their end.
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()
  return available


def convolution(x: Float[Array, 'b *spatial i'], kernel: Float[Array, '...'],
                kernel_layout: str, padding: tuple[tuple[int, int], ...],
                stride: int = 1, dilation: tuple[int, ...] | None = None,
                groups: int = 1, bias: Float[Array, 'o'] | None = None,
                add: Float[Array, 'b *out o'] | None = None,
                relu: bool = False) -> Float[Array, 'b *out o']:
  """Convolves, channels last, and adds what follows in the same pass.

  Args:
    x: batch, then two or three spatial dimensions, then channels.
    kernel: in the layout that `kernel_layout` tells.
    kernel_layout: a letter a dimension: `H`, `W` (and `D`) spatial, `I` and
      `O` the channels that come in and go out. `HWIO` is Linen's.
    padding: zeros before and after each spatial dimension, none negative.
    stride: in every spatial dimension.
    dilation: of the kernel, a spatial dimension each; 1 by default.
    groups: that the channels are divided into.
    bias: added to each channel.
    add: added to the result, before the ReLU.
    relu: whether negative results become zero.
  """
  ranks = range(len(padding))
  kernel_spatial = [kernel_layout.index(s) for s in 'DHW'[-len(padding):]]
  dilation = dilation or (1,) * len(padding)
  out_features = kernel.shape[kernel_layout.index('O')]
  out_spatial = [
      (x.shape[1 + i] + sum(padding[i]) - 1
       - dilation[i] * (kernel.shape[kernel_spatial[i]] - 1)) // stride + 1
      for i in ranks]
  pictures = {'data': {'batch_dim': 0, 'feature_dim': x.ndim - 1,
                       'spatial_dims': [1 + i for i in ranks]}}
  operands, fused = [x, kernel], []
  if bias is not None:
    operands.append(bias)
    fused.append('BIAS')
  if add is not None:
    operands.append(add)
    fused.append('BINARY_ADD')
  if relu:
    fused.append('RELU')
  config = {
      'dims': x.ndim, 'input': pictures, 'output': pictures,
      'kernel': {'filter': {
          'input_feature_dim': kernel_layout.index('I'),
          'output_feature_dim': kernel_layout.index('O'),
          'spatial_dims': kernel_spatial}},
      'window': {'pad_left': [low for low, _ in padding],
                 'pad_right': [high for _, high in padding],
                 'strides': [stride for _ in ranks],
                 'window_dilations': dilation},
      'feature_groups': groups, 'fusions': {'ops': fused}}
  return _call('convolution', {'onednn_conv_config': config}, operands,
               (x.shape[0], *out_spatial, out_features))


def product(a: Float[Array, '*n k i'], b: Float[Array, '*n k j']
            ) -> Float[Array, '*n i j']:
  """The matrix product of `a`, transposed, and `b`."""
  config = {'transpose_a': True, 'transpose_b': False}
  return _call('matmul', {'onednn_matmul_config': config}, [a, b],
               (*a.shape[:-2], a.shape[-1], b.shape[-1]))


def transpose(x: Float[Array, 'n i j']) -> Float[Array, 'n j i']:
  """Swaps the last two dimensions, the first of which is short.

  As a product with ones on the diagonal. XLA would fuse a transposition with
  whatever computed `x`, and read all of that with a stride.
  """
  return product(x, jnp.eye(x.shape[1], dtype=x.dtype)[None])


def _call(target: str, config: dict, operands: list[Array],
          shape: tuple[int, ...]) -> Array:
  result = jax.ShapeDtypeStruct(shape, operands[0].dtype)
  call = jax.ffi.ffi_call(
      f'__onednn${target}', result, custom_call_api_version=2,
      legacy_backend_config=json.dumps(config))
  return call(*operands)
