"""Others' ResNets as they run them, on random weights, and as they save them.

Each is made by its own framework. What leaves its stem, its stages, its pooling
and its head is given channels last, under the names of our features.
"""

import copy
import dataclasses
import pathlib
import tempfile
from typing import Any, Callable

import numpy as np
import peers
import pytest

CLASSES = 10
SEED = 0
_STAGES = ('stage1', 'stage2', 'stage3', 'stage4')
_OF_TORCHVISION = (
    'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152',
    'wide_resnet50_2', 'wide_resnet101_2', 'resnext50_32x4d',
    'resnext101_32x8d', 'resnext101_64x4d')

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Original:
  """Someone's network on random weights and statistics.

  Attributes:
    features: of pictures, `batch height width 3`, in evaluation.
    gradients: of the mean cross-entropy of pictures and labels, by the
      pictures (as `pictures`) and by parameters, by name. In float64, since
      in float32 rounding decides of many activations near zero whether a ReLU
      lets them through: torch's gradients of BiT's networks then differ by 1%
      from its own in float64.
    save: writes its weights to a file, as its users do.
  """

  features: Callable[[np.ndarray], Arrays]
  gradients: Callable[[np.ndarray, np.ndarray, list[str]], Arrays]
  save: Callable[[pathlib.Path], None]


def sources(name: str) -> dict[str, Callable[[], Original]]:
  """Who publishes an architecture of ours, and how to make their original."""
  if name.startswith('bit_'):
    return {'BiT': lambda: bit(name)}
  if name.endswith(('v1', 'v2')):
    return {'Keras .h5': lambda: keras(name, '.h5'),
            'Keras .weights.h5': lambda: keras(name, '.weights.h5')}
  found = {'timm': lambda: timm(name)}
  if name in _OF_TORCHVISION:
    found['torchvision'] = lambda: torchvision(name)
  if name.removeprefix('resnet') in ('18', '26', '34', '50', '101', '152'):
    found['transformers'] = lambda: hugging_face(name)
  return found


def torchvision(name: str) -> Original:
  torch = _import('torch')
  model = peers.torchvision_models().get_model(name, num_classes=CLASSES)
  return _of_torch(_with_random_weights(model), _torchvision_features,
                   lambda path: torch.save(model.state_dict(), path))


def timm(name: str) -> Original:
  """Of timm, whose users load safetensors."""
  _import('torch')
  peers.torchvision_models()  # Which timm imports.
  model = _import('timm').create_model(name, num_classes=CLASSES)
  from safetensors import torch as safetensors
  return _of_torch(_with_random_weights(model), _torchvision_features,
                   lambda path: safetensors.save_model(model, path))


def hugging_face(name: str) -> Original:
  """Of transformers, as `microsoft/resnet-N` describe themselves."""
  torch = _import('torch')
  transformers = _import('transformers')
  layers = int(name.removeprefix('resnet'))
  depths = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3),
            50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[layers]
  basic = layers in (18, 34)
  model = transformers.ResNetForImageClassification(transformers.ResNetConfig(
      num_labels=CLASSES, depths=list(depths),
      hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
      layer_type='basic' if basic else 'bottleneck'))

  def features(model, x):
    outputs = {'stem': (x := model.resnet.embedder(x))}
    for stage, module in zip(_STAGES, model.resnet.encoder.stages):
      outputs[stage] = x = module(x)
    outputs['pooled'] = torch.flatten(model.resnet.pooler(x), 1)
    outputs['logits'] = model.classifier(outputs['pooled'])
    return outputs

  def save(path):
    model.save_pretrained(path.parent / f'{path.name}.saved')
    (path.parent / f'{path.name}.saved' / 'model.safetensors').rename(path)

  return _of_torch(_with_random_weights(model), features, save)


def bit(name: str) -> Original:
  """Of timm, which reads the published `.npz` files; `name` is ours."""
  torch = _import('torch')
  peers.torchvision_models()
  model = _import('timm').create_model(
      f'resnetv2_{name.removeprefix("bit_r")}_bit', num_classes=CLASSES)
  for module in model.modules():
    if type(module).__name__ == 'StdConv2d':
      module.eps = 1e-10  # As in BiT's release; timm's is 1e-8.

  def features(model, x):
    outputs = {'stem': (x := model.stem(x))}
    for stage, module in zip(_STAGES, model.stages):
      outputs[stage] = x = module(x)
    x = model.head.global_pool(model.norm(x))
    outputs['pooled'] = torch.flatten(x, 1)
    outputs['logits'] = torch.flatten(model.head.fc(x), 1)
    return outputs

  weights = peers.random_weights(
      {name: x.shape for name, x in _bit_weights(model.state_dict()).items()},
      SEED)

  def save(path):
    with open(path, 'wb') as file:
      np.savez(file, **weights)

  with tempfile.TemporaryDirectory() as folder:
    save(file := pathlib.Path(folder) / 'weights.npz')
    model.load_pretrained(str(file))
  return _of_torch(model, features, save, _bit_weights)


def keras(name: str, suffix: str) -> Original:
  """Of Keras; saved as `.h5`, as it was published, or as `.weights.h5`."""
  tf = _import('tensorflow')
  keras_ = _import('keras')
  layers, version = name.removeprefix('resnet').split('v')
  create = getattr(keras_.applications,
                   f'ResNet{layers}{"V2" if version == "2" else ""}')

  def create_with_weights(dtype):
    keras_.config.set_floatx(dtype)
    model = create(weights=None, classes=CLASSES, classifier_activation=None,
                   input_tensor=keras_.Input((None, None, 3)))
    keras_.config.set_floatx('float32')
    weights = peers.random_weights(
        {x.path: tuple(x.shape) for x in model.weights}, SEED)
    for variable in model.weights:
      weight = weights[variable.path]
      if variable.path.endswith(('bias', 'moving_mean')):
        # So that ours takes one from the other without rounding, which would
        # decide of an activation near zero whether a ReLU lets it through.
        weight = np.round(weight * 1024) / 1024
      variable.assign(weight)
    return model

  model = create_with_weights('float32')
  # The last layer of each part.
  blocks = {'50': (3, 4, 6, 3), '101': (3, 4, 23, 3), '152': (3, 8, 36, 3)}
  ends = {'stem': 'pool1_pool',
          **{stage: f'conv{i}_block{count}_out' for i, (stage, count) in
             enumerate(zip(_STAGES, blocks[layers]), start=2)},
          'pooled': 'avg_pool', 'logits': 'predictions'}
  outputs = keras_.Model(model.input, {
      part: model.get_layer(layer).output for part, layer in ends.items()})

  def seen(pictures):  # The first version has learnt from blue, green, red.
    return tf.constant(pictures[..., ::-1] if version == '1' else pictures)

  def features(pictures):
    return {part: x.numpy() for part, x in outputs(
        seen(pictures), training=False).items()}

  def gradients(pictures, labels, names):
    exact = create_with_weights('float64')
    variables = {x.path: x.value for x in exact.trainable_weights}
    x = tf.cast(seen(pictures), tf.float64)
    with tf.GradientTape() as tape:
      tape.watch(x)
      losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
          labels, exact(x, training=False))
      loss = tf.reduce_mean(losses)
    of_x, *others = tape.gradient(loss, [x, *(variables[n] for n in names)])
    of_x = of_x.numpy()
    return {'pictures': of_x[..., ::-1] if version == '1' else of_x,
            **{name: x.numpy() for name, x in zip(names, others)}}

  def save(path):
    if suffix == '.h5':
      import h5py
      from keras.src.legacy.saving import legacy_h5_format
      with h5py.File(path, 'w') as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    else:
      model.save_weights(f'{path}.weights.h5')
      pathlib.Path(f'{path}.weights.h5').rename(path)

  return Original(features, gradients, save)


def _of_torch(model, features, save, published=dict) -> Original:
  """Asks it channels last.

  Args:
    model: the network.
    features: of the model and a batch, channels first.
    save: as of `Original`.
    published: turns a state dict into what is published.
  """
  torch = _import('torch')
  model.eval()

  def channels_last(x):
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x

  def channels_first(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)

  def all_features(pictures):
    with torch.no_grad():
      outputs = features(model, channels_first(pictures))
    return {name: channels_last(x) for name, x in outputs.items()}

  def gradients(pictures, labels, names):
    exact = copy.deepcopy(model).double()
    x = channels_first(pictures).double().requires_grad_()
    logits = features(exact, x)['logits']
    torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(labels)).backward()
    of_parameters = published(
        {name: x.grad for name, x in exact.named_parameters()})
    return {'pictures': channels_last(x.grad),
            **{name: np.asarray(of_parameters[name]) for name in names}}

  return Original(all_features, gradients, save)


def _with_random_weights(model):
  torch = _import('torch')
  shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()
            if not name.endswith('num_batches_tracked')}
  model.load_state_dict(
      {name: torch.from_numpy(x)
       for name, x in peers.random_weights(shapes, SEED).items()},
      strict=False)
  return model


def _torchvision_features(model, x):
  """Of torchvision's and of timm's."""
  torch = _import('torch')
  x = model.bn1(model.conv1(x))
  x = torch.relu(x)  # As an activation of timm's would, or its norm already.
  outputs = {'stem': (x := model.maxpool(x))}
  for stage, module in zip(_STAGES, (model.layer1, model.layer2, model.layer3,
                                     model.layer4)):
    outputs[stage] = x = module(x)
  outputs['pooled'] = x.mean((2, 3))
  outputs['logits'] = model.fc(outputs['pooled'])
  return outputs


def _bit_weights(state: dict[str, Any]) -> Arrays:
  """timm's tensors under the names of the published files, and their axes."""
  weights = {}
  for name, tensor in state.items():
    *path, leaf = name.split('.')
    leaf = {'weight': 'gamma', 'bias': 'beta'}[leaf]
    match path:
      case ['stem', 'conv']:
        place, leaf = 'root_block/standardized_conv2d', 'kernel'
      case ['norm']:
        place = 'group_norm'
      case ['head', 'fc']:
        place = 'head/conv2d'
        leaf = {'gamma': 'kernel', 'beta': 'bias'}[leaf]
      case ['stages', stage, 'blocks', block, 'downsample', 'conv']:
        place = f'block{int(stage) + 1}/unit{int(block) + 1:02d}/a/proj'
        place, leaf = f'{place}/standardized_conv2d', 'kernel'
      case ['stages', stage, 'blocks', block, layer]:
        letter = 'abc'[int(layer[-1]) - 1]
        place = f'block{int(stage) + 1}/unit{int(block) + 1:02d}/{letter}'
        if layer.startswith('conv'):
          place, leaf = f'{place}/standardized_conv2d', 'kernel'
        else:
          place = f'{place}/group_norm'
    array = tensor.numpy()
    weights[f'resnet/{place}/{leaf}'] = (
        array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
  return weights


def _import(name: str) -> Any:
  return pytest.importorskip(
      name, reason=f'the peer, {name}, is not installed')
