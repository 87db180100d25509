"""The same network in JAX, in torch and in Keras, ready to take a step.

Each takes pictures that lie ready where it computes, on one accelerator or on
the CPU: in float32 on a CPU, in bfloat16 elsewhere. Training is a cross-entropy
over 1,000 classes and SGD with momentum; nothing is augmented. Libraries are
imported where they are used: each contender has a process of its own.
"""

import argparse
import dataclasses
import os
import time
from typing import Any, Callable

from catsdogs import huge_pages

_CLASSES = 1000
_LEARNING_RATE, _MOMENTUM = 0.01, 0.9

# Ours with what launch.py sets; JAX is not to take the whole of a GPU.
_SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
ENVIRONMENTS = {'ours': {**_SHARED, **huge_pages.environment()},
                'linen': _SHARED}


def ours_training(flags: argparse.Namespace):
  return _jax_training(flags, _our_model(flags), ours=True)


def linen_training(flags: argparse.Namespace):
  return _jax_training(flags, _linen_model(flags), ours=False)


def ours_inference(flags: argparse.Namespace):
  return _jax_inference(flags, _our_model(flags))


def linen_inference(flags: argparse.Namespace):
  return _jax_inference(flags, _linen_model(flags))


def torch_training(flags: argparse.Namespace, compile_it: bool = False):
  """torchvision's network, channels last; eager, or by `torch.compile`."""
  import torch
  model, pictures, autocast, device, about = _torch_model(flags)
  labels = torch.arange(flags.batch_size, device=device) % _CLASSES
  optimizer = torch.optim.SGD(model.parameters(), _LEARNING_RATE, _MOMENTUM)

  def loss_of():
    with autocast():
      return torch.nn.functional.cross_entropy(model(pictures), labels)

  if compile_it:
    loss_of = torch.compile(loss_of)

  def step():
    optimizer.zero_grad()
    loss_of().backward()
    optimizer.step()
    _wait(device)

  return step, about


def torch_inference(flags: argparse.Namespace, compile_it: bool = False):
  import torch
  model, pictures, autocast, device, about = _torch_model(flags)
  model.eval()
  if compile_it:
    model = torch.compile(model)

  def step():
    with torch.inference_mode(), autocast():
      model(pictures)
    _wait(device)

  return step, about


def torch_compile_training(flags: argparse.Namespace):
  return torch_training(flags, compile_it=True)


def torch_compile_inference(flags: argparse.Namespace):
  return torch_inference(flags, compile_it=True)


def keras_training(flags: argparse.Namespace):
  """keras.applications' ResNet on TensorFlow; it has ResNet-50 and larger."""
  import numpy as np
  keras, model, pictures, about = _keras_model(flags)
  model.compile(
      keras.optimizers.SGD(_LEARNING_RATE, _MOMENTUM), jit_compile=False,
      loss=keras.losses.SparseCategoricalCrossentropy())
  labels = np.arange(flags.batch_size) % _CLASSES
  return lambda: model.train_on_batch(pictures, labels), about


def keras_inference(flags: argparse.Namespace):
  import tensorflow as tf
  _, model, pictures, about = _keras_model(flags)
  answer = tf.function(lambda x: model(x, training=False))
  pictures = tf.constant(pictures)
  return lambda: answer(pictures).numpy(), about


def _pictures(flags: argparse.Namespace):
  import numpy as np
  size = (flags.batch_size, flags.image_size, flags.image_size, 3)
  return np.random.default_rng(0).standard_normal(size, np.float32)


def _architecture(flags: argparse.Namespace):
  from catsdogs.architectures import ARCHITECTURES
  return dataclasses.replace(ARCHITECTURES[flags.model], width=flags.width)


def _dtype():
  import jax
  return 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'


def _our_model(flags: argparse.Namespace):
  from catsdogs.models import ResNet
  return ResNet(_architecture(flags), _CLASSES, dtype=_dtype())


def _linen_model(flags: argparse.Namespace):
  from benchmarks.linen_resnet import LinenResNet
  return LinenResNet(_architecture(flags), _CLASSES, dtype=_dtype())


def _jax_training(flags: argparse.Namespace, model: Any, ours: bool):
  import jax
  import jax.numpy as jnp
  import optax
  from catsdogs import convolution
  pictures = jnp.asarray(_pictures(flags))
  labels = jnp.arange(flags.batch_size) % _CLASSES
  optimizer = optax.sgd(_LEARNING_RATE, _MOMENTUM)
  variables = jax.jit(lambda: model.init(jax.random.key(0), pictures,
                                         train=False))()
  state = variables, optimizer.init(variables['params'])

  def train_step(state, pictures, labels):
    variables, opt_state = state

    def loss_fn(params):
      logits, updates = model.apply({**variables, 'params': params}, pictures,
                                    train=True, mutable=['batch_stats'])
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return loss.mean(), updates

    (loss, updates), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        variables['params'])
    changes, opt_state = optimizer.update(grads, opt_state)
    params = optax.apply_updates(variables['params'], changes)
    return ({'params': params, **updates}, opt_state), loss

  options = convolution.compiler_options() if ours else None
  compiled, about = _compiled(
      jax.jit(train_step, donate_argnums=0, compiler_options=options), state,
      pictures, labels)

  def step():
    nonlocal state
    state, loss = compiled(state, pictures, labels)
    jax.block_until_ready(loss)

  return step, about


def _jax_inference(flags: argparse.Namespace, model: Any):
  import jax
  import jax.numpy as jnp
  pictures = jnp.asarray(_pictures(flags))
  variables = jax.jit(lambda: model.init(jax.random.key(0), pictures,
                                         train=False))()
  compiled, about = _compiled(
      jax.jit(lambda variables, x: model.apply(variables, x, train=False)),
      variables, pictures)
  return lambda: jax.block_until_ready(compiled(variables, pictures)), about


def _compiled(function: Callable[..., Any], *args: Any):
  """The function, compiled, and the versions and the time it took."""
  import flax
  import jax
  started = time.perf_counter()
  compiled = function.lower(*args).compile()
  seconds = time.perf_counter() - started
  device = jax.devices()[0]
  return compiled, {
      'about': f'jax {jax.__version__}, flax {flax.__version__}, '
               f'{device.device_kind}, {_dtype()}, compiled in {seconds:.1f} s',
      'compile_seconds': seconds}


def _torch_model(flags: argparse.Namespace):
  """torchvision's network, pictures for it, and the context it computes in."""
  import contextlib
  import torch
  from tests.peers import torchvision_models
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = torchvision_models().get_model(flags.model, num_classes=_CLASSES)
  _widen(model, flags.width)
  last = torch.channels_last
  model = model.to(device, memory_format=last)
  pictures = torch.from_numpy(_pictures(flags)).permute(0, 3, 1, 2)
  pictures = pictures.to(device).contiguous(memory_format=last)

  def autocast():
    if device == 'cpu':
      return contextlib.nullcontext()
    return torch.autocast(device, torch.bfloat16)

  kind = (torch.cuda.get_device_name() if device == 'cuda'
          else f'{torch.get_num_threads()} threads, float32')
  return model, pictures, autocast, device, {
      'about': f'torch {torch.__version__}, channels_last, {kind}'}


def _widen(model: Any, width: float) -> None:
  """Multiplies the channels of a torchvision ResNet, in place."""
  import torch
  if width == 1:
    return
  for module in list(model.modules()):
    for name, child in list(module.named_children()):
      if isinstance(child, torch.nn.Conv2d):
        channels_in = child.in_channels
        channels_in = channels_in if channels_in == 3 else round(
            channels_in * width)
        setattr(module, name, torch.nn.Conv2d(
            channels_in, round(child.out_channels * width), child.kernel_size,
            child.stride, child.padding, groups=child.groups, bias=False))
      elif isinstance(child, torch.nn.BatchNorm2d):
        setattr(module, name,
                torch.nn.BatchNorm2d(round(child.num_features * width)))
      elif isinstance(child, torch.nn.Linear):
        setattr(module, name, torch.nn.Linear(
            round(child.in_features * width), child.out_features))


def _wait(device: str) -> None:
  import torch
  if device == 'cuda':
    torch.cuda.synchronize()


def _keras_model(flags: argparse.Namespace):
  os.environ['KERAS_BACKEND'] = 'tensorflow'
  names = {'resnet50': 'ResNet50', 'resnet101': 'ResNet101',
           'resnet152': 'ResNet152'}
  if flags.model not in names or flags.width != 1:
    raise ValueError(f'keras.applications has no {flags.model} of width '
                     f'{flags.width:g}')
  import keras
  import tensorflow as tf
  size = flags.image_size
  model = getattr(keras.applications, names[flags.model])(
      weights=None, input_shape=(size, size, 3), classes=_CLASSES)
  return keras, model, _pictures(flags), {
      'about': f'keras {keras.__version__} on tensorflow {tf.__version__}, '
               'float32'}
