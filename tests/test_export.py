"""Models for other people's software."""

import jax
import numpy as np
import peers
import pytest

from catsdogs import export, models
from catsdogs.errors import UserError
from catsdogs.preprocessing import Preprocessing
from catsdogs.pretrained import initial
from catsdogs.restore import Restored
from configs import finetune

CLASS_NAMES = ('cat', 'dog', 'fish')
PREPROCESSING = Preprocessing(64, 0.9, interpolation='bicubic')


def restored(name: str, width: float = 1.0) -> Restored:
  """A model on random numbers."""
  model = models.create_model(peers.model_config(name, width),
                              len(CLASS_NAMES))
  random = np.random.default_rng(0)
  variables = jax.tree.map(
      lambda x: random.uniform(0.1, 0.3, x.shape).astype(np.float32),
      models.variable_shapes(model))
  return Restored(model, variables, CLASS_NAMES, PREPROCESSING, 'checkpoint 3')


@pytest.mark.parametrize('name', ['resnet18', 'resnet18d'])
def test_torch_computes_the_same_with_what_is_exported(tmp_path, name):
  torch = pytest.importorskip(
      'torch', reason='the peer, torch, is not installed')
  create = peers.torchvision_models().get_model
  if name != 'resnet18':
    create = pytest.importorskip(
        'timm', reason='the peer, timm, is not installed').create_model
  ours, file = restored(name), tmp_path / 'torchvision.safetensors'
  export.to_torchvision(ours, file)
  # pylint: disable-next=g-import-not-at-top
  from safetensors.torch import load_file
  theirs = create(name, num_classes=len(CLASS_NAMES))
  left = theirs.load_state_dict(load_file(file), strict=False)
  assert not left.unexpected_keys
  assert all(key.endswith('num_batches_tracked') for key in left.missing_keys)
  pictures = peers.random_pictures(75, seed=0)
  with torch.no_grad():
    expected = theirs.eval()(
        torch.from_numpy(pictures).permute(0, 3, 1, 2)).numpy()
  with jax.default_matmul_precision('highest'):
    found = np.asarray(ours.model.apply(ours.variables, pictures))
  assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_is_exported_is_weights_for_another_run(tmp_path):
  ours, file = restored('resnet18', width=0.125), tmp_path / 'x.safetensors'
  export.to_torchvision(ours, file)
  config = finetune.get_config('resnet18').copy_and_resolve_references()
  config.model.weights, config.data.image_size = str(file), 64
  pretrained = initial.open_pretrained(config, tmp_path)
  assert pretrained.class_names == CLASS_NAMES
  assert pretrained.preprocessing == PREPROCESSING
  variables, head = pretrained.put_into(ours.model, CLASS_NAMES)
  assert head == 'its head too'
  jax.tree.map(np.testing.assert_array_equal, variables, ours.variables)
  assert [path.name for path in tmp_path.iterdir()] == ['x.safetensors']


@pytest.mark.parametrize('name', ['resnet50v1', 'bit_r50x1'])
def test_what_torchvision_has_no_network_for_is_refused(tmp_path, name):
  with pytest.raises(UserError, match='no network like this model'):
    export.to_torchvision(restored(name, width=0.125), tmp_path / 'x')
  assert not [*tmp_path.iterdir()]
