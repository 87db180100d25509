"""Files as the Hugging Face hub has them, for the tests, and a hub of them."""

import hashlib

from web_server import Page, WebServer

# As of microsoft/resnet-18 and microsoft/resnet-50, shortened.
RESNET_18 = {
    'architectures': ['ResNetForImageClassification'], 'model_type': 'resnet',
    'depths': [2, 2, 2, 2], 'layer_type': 'basic', 'embedding_size': 64,
    'hidden_sizes': [64, 128, 256, 512], 'hidden_act': 'relu',
    'downsample_in_first_stage': False, 'num_channels': 3}
RESNET_50 = {
    **RESNET_18, 'depths': [3, 4, 6, 3], 'layer_type': 'bottleneck',
    'hidden_sizes': [256, 512, 1024, 2048]}
PREPROCESSOR = {
    'crop_pct': 0.875, 'do_normalize': True, 'do_resize': True,
    'feature_extractor_type': 'ConvNextFeatureExtractor',
    'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225],
    'resample': 3, 'size': 224}
TIMM = {
    'architecture': 'resnet50', 'num_classes': 1000, 'num_features': 2048,
    'pretrained_cfg': {
        'tag': 'a3_in1k', 'input_size': [3, 160, 160], 'crop_pct': 0.95,
        'interpolation': 'bicubic', 'mean': [0.485, 0.456, 0.406],
        'std': [0.229, 0.224, 0.225], 'num_classes': 1000}}


def put_on_hub(web: WebServer, repository: str, files: dict[str, bytes],
               store: WebServer | None = None) -> None:
  """Makes a server the hub that has these files, and no others.

  What is large (of weights) is redirected to a store, this server or another
  one, and has its SHA-256; what is small has the hash of git.
  """
  store = store or web
  web.status, web.headers = 404, {'X-Error-Code': 'EntryNotFound'}
  for name, content in files.items():
    path = f'/{repository}/resolve/main/{name}'
    if name.endswith('.json'):
      git = hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
      web.pages[path] = Page(content, headers={'ETag': f'"{git}"',
                                               'X-Repo-Commit': 40 * 'c'})
      continue
    store.pages[f'/store/{name}'] = Page(content)
    web.pages[path] = Page(b'', 302, {
        'Location': f'{store.root}/store/{name}', 'X-Repo-Commit': 40 * 'c',
        'X-Linked-Size': str(len(content)),
        'X-Linked-Etag': f'"{hashlib.sha256(content).hexdigest()}"'})
