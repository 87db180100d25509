"""Convolutions in the forms that are fast where they run.

On GPU and TPU that is XLA's own. On a CPU, XLA's convolution is slow in some
shapes, most of all in its gradients: so there the gradients are stated as
convolutions and matrix products of their own, and computed by oneDNN where
jaxlib has it. `python -m benchmarks.train_step` measures what that brings.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from catsdogs import onednn

# Of as many channels a strided convolution is computed on blocks of pixels.
_FEW_CHANNELS = 4
# Photos that the gradient of the kernel takes side by side: one vector of
# AVX-512. With 32 or 64 a step took 3% to 10% longer.
_MOST_TOGETHER = 16


def compiler_options() -> dict[str, Any] | None:
  """For `jax.jit` of a step: what lets `materialize` do its work on a CPU."""
  if jax.default_backend() != 'cpu':
    return None
  # The pass that removes the barriers, by the name that XLA gives it.
  return {'xla_disable_hlo_passes': 'cse_barrier_expander'}


def materialize(x: Array) -> Array:
  """Returns `x`; on a CPU, computed once and kept.

  XLA for CPU takes elementwise operations for free and repeats them wherever
  their result is used. Of a residual network that would be the sums of all
  earlier blocks, again and again.
  """
  return lax.optimization_barrier(x) if jax.default_backend() == 'cpu' else x


def conv2d(x: Float[Array, 'b h w i'], kernel: Float[Array, 'k k i/g o'],
           bias: Float[Array, 'o'] | None = None,
           add: Float[Array, 'b h2 w2 o'] | None = None, *, stride: int = 1,
           groups: int = 1, relu: bool = False) -> Float[Array, 'b h2 w2 o']:
  """A convolution padded by k // 2 on all sides, and what follows it.

  Args:
    x: pictures.
    kernel: square, in Linen's layout, divided into `groups`.
    bias: added to each channel.
    add: added to the result, before the ReLU.
    stride: in both directions.
    groups: of the channels.
    relu: whether negative results become zero.
  """
  padding = kernel.shape[0] // 2
  if jax.default_backend() != 'cpu':
    return _then(_native(x, kernel, stride, padding, groups), bias, add, relu)
  if stride > 1 and x.shape[-1] <= _FEW_CHANNELS and padding:
    x, kernel = _blocks(x, stride), _kernel_of_blocks(kernel, stride)
    low = -(-padding // stride)
    return _conv2d(x, kernel, bias, add, 1,
                   (low, kernel.shape[0] - 1 - low), groups, relu)
  return _conv2d(materialize(x), kernel, bias, add, stride,
                 (padding, padding), groups, relu)


def _native(x, kernel, stride, padding, groups):
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), [(padding, padding)] * 2,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


def _then(y, bias, add, relu):
  y = y if bias is None else y + bias
  y = y if add is None else y + add
  return jax.nn.relu(y) if relu else y


def _blocks(x: Float[Array, 'b h w c'], size: int
            ) -> Float[Array, 'b h/size w/size size*size*c']:
  """Blocks of pixels as channels; the picture is filled up with zeros."""
  b, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
  h, w = -(-h // size), -(-w // size)
  x = x.reshape(b, h, size, w, size * c)
  return x.transpose(0, 1, 3, 2, 4).reshape(b, h, w, size * size * c)


def _kernel_of_blocks(kernel: Float[Array, 'k k i o'], size: int
                      ) -> Float[Array, 'n n size*size*i o']:
  """The kernel that does with stride 1 on blocks what it did on pixels."""
  k, _, i, o = kernel.shape
  before = -(k // 2) % size
  after = -(before + k) % size
  kernel = jnp.pad(kernel, ((before, after), (before, after), (0, 0), (0, 0)))
  n = kernel.shape[0] // size
  kernel = kernel.reshape(n, size, n, size, i, o)
  return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(n, n, size * size * i, o)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _conv2d(x, kernel, bias, add, stride, padding, groups, relu):
  return _convolve(x, kernel, 'HWIO', (padding, padding), stride, groups, bias,
                   add, relu)


def _conv2d_forward(x, kernel, bias, add, stride, padding, groups, relu):
  y = _conv2d(x, kernel, bias, add, stride, padding, groups, relu)
  # Of what was only added no more than its shape is needed; of y, its sign.
  return y, (x, kernel, bias, None if add is None else (), y if relu else None)


def _conv2d_backward(stride, padding, groups, relu, saved, g):
  x, kernel, bias, add, y = saved
  if relu:
    g = jnp.where(y > 0, g, 0)
  g = materialize(g)
  return (_gradient_of_input(g, kernel, x.shape, stride, padding[0], groups),
          _gradient_of_kernel(g, x, kernel.shape, stride, padding, groups),
          None if bias is None else g.sum((0, 1, 2)),
          None if add is None else g)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def _convolve(x, kernel, kernel_layout, padding, stride=1, groups=1, bias=None,
              add=None, relu=False):
  """A convolution on a CPU; no padding is negative."""
  if _by_onednn(x, kernel):
    return onednn.convolution(x, kernel, kernel_layout, padding, stride,
                              groups=groups, bias=bias, add=add, relu=relu)
  if kernel.shape[:2] == (1, 1) and groups == 1 and padding == ((0, 0),) * 2:
    dimension = kernel_layout.index('I')
    x = x[:, ::stride, ::stride]
    y = lax.dot_general(x, kernel[0, 0], (((3,), (dimension - 2,)), ((), ())))
  else:
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, feature_group_count=groups,
        dimension_numbers=('NHWC', kernel_layout, 'NHWC'))
  return _then(y, bias, add, relu)


def _by_onednn(*operands: Array) -> bool:
  return (all(operand.dtype == jnp.float32 for operand in operands)
          and onednn.is_available())


def _gradient_of_input(g: Float[Array, 'b h2 w2 o'],
                       kernel: Float[Array, 'k k i/g o'],
                       shape: tuple[int, ...], stride: int, low: int,
                       groups: int) -> Float[Array, 'b h w i']:
  """The gradient of a convolution's input, without a dilated convolution.

  The rows whose number leaves the same rest by the stride see the same rows of
  the kernel, and so with the columns: each such part of the gradient is a
  convolution of stride 1 of `g` by a part of the kernel, turned around.

  Args:
    g: gradient of the output.
    kernel: of the convolution.
    shape: of the input.
    stride: of the convolution.
    low: the zeros before each spatial dimension of the input.
    groups: of the channels.
  """
  if groups > 1:
    k, _, i, o = kernel.shape
    kernel = kernel.reshape(k, k, i, groups, o // groups)
    kernel = kernel.transpose(0, 1, 4, 3, 2).reshape(
        k, k, o // groups, i * groups)
    layout = 'HWIO'
  else:
    layout = 'HWOI'

  b, h, w, c = shape
  # Every part is filled up to the size of the largest.
  parts_h, parts_w = -(-h // stride), -(-w // stride)

  def part(row, column):
    taps_h, low_h, high_h = _part(row, parts_h, kernel.shape[0], stride, low,
                                  g.shape[1])
    taps_w, low_w, high_w = _part(column, parts_w, kernel.shape[1], stride,
                                  low, g.shape[2])
    seen = kernel[taps_h, taps_w][::-1, ::-1]
    if not seen.size:
      return jnp.zeros((b, parts_h, parts_w, c), g.dtype)
    inner = g[:, max(0, -low_h):g.shape[1] + min(0, high_h),
              max(0, -low_w):g.shape[2] + min(0, high_w)]
    padding = ((max(0, low_h), max(0, high_h)), (max(0, low_w), max(0, high_w)))
    return _convolve(inner, seen, layout, padding, groups=groups)

  if stride == 1:
    return part(0, 0)
  rows = [jnp.stack([part(row, column) for column in range(stride)], axis=3)
          for row in range(stride)]
  whole = jnp.stack(rows, axis=2)  # b, part's row, row, part's column, column
  whole = whole.reshape(b, parts_h * stride, parts_w * stride, c)
  return whole[:, :h, :w]


def _part(first: int, count: int, kernel: int, stride: int, low: int,
          outputs: int) -> tuple[slice, int, int]:
  """What the input's places first, first + stride, ... see, in one dimension.

  Place p takes part in output o by the kernel's tap p + low - stride * o.

  Returns:
    The taps that these places meet, and what to pad `outputs` by before and
    after, so that a convolution with them, turned around, gives `count`
    places.
  """
  first_tap = (first + low) % stride
  taps = len(range(first_tap, kernel, stride))
  before = taps - 1 - (first + low - first_tap) // stride
  return (slice(first_tap, None, stride), before,
          count + taps - 1 - before - outputs)


def _gradient_of_kernel(g: Float[Array, 'b h2 w2 o'],
                        x: Float[Array, 'b h w i'], shape: tuple[int, ...],
                        stride: int, padding: tuple[int, int], groups: int
                        ) -> Float[Array, 'k k i/g o']:
  """The gradient of a convolution's kernel.

  Args:
    g: gradient of the output.
    x: the convolution's input.
    shape: of the kernel.
    stride: of the convolution.
    padding: zeros before and after each spatial dimension of `x`.
    groups: of the channels.
  """
  if shape[:2] == (1, 1) and groups == 1 and padding == (0, 0):
    x = x[:, ::stride, ::stride].reshape(-1, x.shape[-1])
    g = g.reshape(-1, g.shape[-1])
    product = onednn.product if _by_onednn(x, g) else lambda a, b: a.T @ b
    return product(x, g).reshape(shape)
  if groups == 1 and _by_onednn(x, g):
    return _correlate(g, x, shape[0], stride, padding[0])

  def forward(kernel):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)

  kernel = jax.ShapeDtypeStruct(shape, x.dtype)
  return jax.linear_transpose(forward, kernel)(g)[0]


def _correlate(g: Float[Array, 'b h2 w2 o'], x: Float[Array, 'b h w i'],
               kernel: int, stride: int, low: int
               ) -> Float[Array, 'kernel kernel i o']:
  """The gradient of the kernel, as one convolution of `x` by `g`.

  What is summed over are the photos and the places, so the photos become the
  channels that go in, and `g` becomes a kernel as large as a picture, dilated
  by the stride. The channels of `x` move into its width: a step of one channel
  goes to the next row of the result, one of a whole pixel to the kernel's next
  column. That way a result has `kernel` times `i` columns, which oneDNN
  computes together, instead of `kernel`. More photos than fit side by side
  are the depth of a convolution in three dimensions.
  """
  b, h, w, i = x.shape
  _, out_h, out_w, o = g.shape
  high_h = (kernel - 1) + (out_h - 1) * stride + 1 - h - low
  high_w = (kernel - 1) + (out_w - 1) * stride + 1 - w - low
  x = x[:, :h + min(0, high_h), :w + min(0, high_w)]
  h, w = x.shape[1:3]
  together = max(n for n in range(1, _MOST_TOGETHER + 1) if b % n == 0)
  depth = b // together
  x = onednn.transpose(x.reshape(depth, together, h * w * i))
  y = onednn.convolution(
      x.reshape(1, depth, h, w * i, together),
      g.reshape(depth, together, out_h, out_w, o), 'DIHWO',
      ((0, 0), (low, max(0, high_h)), (low * i, max(0, high_w) * i)),
      dilation=(1, stride, stride * i))
  return y.reshape(kernel, kernel, i, o)
