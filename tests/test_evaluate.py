"""What follows from a model's answers, against slow references."""

import csv
import json

import numpy as np
import pytest

from catsdogs.evaluate import Evaluation, confidence_interval, describe


def evaluation(probabilities, labels, class_names=('cat', 'dog'), ids=None):
  probabilities = np.asarray(probabilities, np.float32)
  labels = np.asarray(labels, np.int32)
  losses = -np.log(probabilities[np.arange(len(labels)), labels] + 1e-9)
  ids = ids or [f'{i}.jpg' for i in range(len(labels))]
  return Evaluation(ids, class_names, labels, probabilities, losses)


def random_evaluation(seed: int, classes: int, count: int = 60) -> Evaluation:
  """Answers of which some are equal to each other."""
  random = np.random.default_rng(seed)
  probabilities = random.dirichlet(np.ones(classes), count)
  probabilities[:count // 2] = probabilities[:count // 2].round(1)
  names = tuple(f'class{i}' for i in range(classes))
  return evaluation(probabilities, random.integers(0, classes, count), names)


@pytest.mark.parametrize('classes', [2, 5])
def test_accuracy_loss_and_recall_are_plain_shares(classes):
  e = random_evaluation(0, classes)
  right = [max(range(classes), key=lambda c: row[c]) == label
           for row, label in zip(e.probabilities, e.labels)]
  assert e.count == 60
  assert e.accuracy == sum(right) / 60
  assert e.loss == pytest.approx(sum(map(float, e.losses)) / 60)
  recall = e.per_class_recall()
  assert tuple(recall) == e.class_names
  for c, name in enumerate(e.class_names):
    mine = [r for r, label in zip(right, e.labels) if label == c]
    assert recall[name] == pytest.approx(sum(mine) / len(mine))


def test_a_class_without_photos_has_no_recall():
  e = evaluation([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]], [0, 0], ('a', 'b', 'c'))
  assert e.per_class_recall() == {'a': 0.5}


def test_calibration_error_of_a_hand_made_example():
  # In tenths, 0.55 and 0.58 share a bin: mean confidence 0.565, accuracy 0.5;
  # 0.95 is alone and right; 1.0 belongs to the last bin, with 0.95.
  e = evaluation([[0.55, 0.45], [0.42, 0.58], [0.95, 0.05], [0.0, 1.0]],
                 [0, 0, 0, 0])
  expected = 2 / 4 * abs(0.5 - 0.565) + 2 / 4 * abs(0.5 - 0.975)
  assert e.expected_calibration_error(10) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('classes', [2, 5])
@pytest.mark.parametrize('bins', [10, 15])
def test_calibration_error_is_the_weighted_gap_of_each_bin(classes, bins):
  e = random_evaluation(1, classes)
  expected = 0.0
  for b in range(bins):
    inside = [(float(row.max()), row.argmax() == label)
              for row, label in zip(e.probabilities, e.labels)
              if b <= float(row.max()) * bins < b + 1
              or (b == bins - 1 and row.max() == 1)]
    if inside:
      confidence, right = np.mean(inside, axis=0)
      expected += len(inside) / e.count * abs(confidence - right)
  assert e.expected_calibration_error(bins) == pytest.approx(expected)


def test_a_model_that_knows_all_is_calibrated_and_one_that_errs_is_not():
  assert evaluation(np.eye(2), [0, 1]).expected_calibration_error() == 0
  assert evaluation(np.eye(2), [1, 0]).expected_calibration_error() == 1


@pytest.mark.parametrize('seed', range(5))
def test_auc_is_the_share_of_pairs_in_order_and_ties_count_half(seed):
  e = random_evaluation(seed, 2)
  dogs, cats = (e.probabilities[e.labels == c, 1] for c in (1, 0))
  pairs = [1.0 if d > c else 0.5 if d == c else 0.0
           for d in dogs for c in cats]
  assert 0.5 in pairs
  assert e.roc_auc() == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize('scores,auc', [
    ([0.1, 0.2, 0.8, 0.9], 1.0), ([0.9, 0.8, 0.2, 0.1], 0.0),
    ([0.5, 0.5, 0.5, 0.5], 0.5), ([0.1, 0.5, 0.5, 0.9], 0.875)])
def test_auc_of_hand_made_scores(scores, auc):
  e = evaluation([[1 - s, s] for s in scores], [0, 0, 1, 1])
  assert e.roc_auc() == auc


def test_auc_needs_two_classes_that_both_have_photos():
  assert random_evaluation(0, 3).roc_auc() is None
  assert evaluation([[0.5, 0.5]], [1]).roc_auc() is None


@pytest.mark.parametrize('correct,count,low,high', [
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0000, 0.1611),
    (1, 29, 0.0061, 0.1718),
    # Design of this project: 21 of 32 may be chance.
    (21, 32, 0.483, 0.796)])
def test_the_interval_is_wilson_s_as_published(correct, count, low, high):
  assert confidence_interval(correct, count) == pytest.approx(
      (low, high), abs=6e-4 if count == 32 else 6e-5)


def test_the_interval_stays_within_0_and_1_and_holds_the_accuracy():
  for count in (1, 2, 10, 1000):
    for correct in {0, 1, count // 2, count}:
      low, high = confidence_interval(correct, count)
      assert 0 <= low < high <= 1
      assert low - 1e-12 <= correct / count <= high + 1e-12
      mirrored = confidence_interval(count - correct, count)
      assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_an_accuracy_is_told_with_its_count_and_interval():
  assert describe(21 / 32, 32) == (
      '0.6562 (21 of 32; 95% interval 0.483 to 0.796)')


def test_the_summary_is_json_of_plain_numbers():
  summary = random_evaluation(0, 2).summary()
  read = json.loads(json.dumps(summary))
  assert set(read) == {
      'val_accuracy', 'val_accuracy_interval', 'val_loss', 'val_count',
      'per_class', 'expected_calibration_error', 'roc_auc'}
  low, high = read['val_accuracy_interval']
  assert low < read['val_accuracy'] < high and read['val_count'] == 60


def test_the_csv_has_every_photo_whatever_its_name(tmp_path):
  ids = ['a,b.jpg', 'line\nbreak.jpg', 'cr\r.jpg', '"quoted".jpg',
         'bad\udcff.jpg', '猫.jpg', ' space ', "it's"]
  random = np.random.default_rng(0)
  e = evaluation(random.dirichlet(np.ones(2), len(ids)),
                 random.integers(0, 2, len(ids)), ('cat, tabby', 'dog "x"'),
                 ids)
  file = tmp_path / 'predictions' / 'val.csv'
  e.write_csv(file)
  with file.open(newline='', encoding='utf-8') as f:
    header, *rows = csv.reader(f)
  assert header == ['file', 'label', 'prediction', 'cat, tabby', 'dog "x"',
                    'loss']
  assert [row[0] for row in rows] == [
      name.replace('\udcff', '\\udcff') for name in ids]
  for i, row in enumerate(rows):
    assert row[1] == e.class_names[e.labels[i]]
    assert row[2] == e.class_names[e.probabilities[i].argmax()]
    np.testing.assert_allclose([float(x) for x in row[3:]],
                               [*e.probabilities[i], e.losses[i]], atol=1e-6)
