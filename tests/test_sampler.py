"""Every rule of drawing batches, by counting what comes; batches depend on seed and step alone."""

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from metricweight.checks import InputError
from metricweight.data.sampler import RULES, ClassBalancedSampler, listing

LABELS = np.repeat(np.arange(20), np.arange(1, 21))  # class c has c + 1 items: 210 in all
ITEMS = [np.flatnonzero(label == LABELS).tolist() for label in range(20)]
NAMES = [rule.name for rule in RULES]
BY_CLASS = [name for name in NAMES if name != "shuffle"]


def sampler(rule="ranked_list", classes=6, images=4, labels=LABELS, **options):
    return ClassBalancedSampler(labels, classes, images, rule=rule, **options)


def epochs(numbers, rule="ranked_list"):
    made = sampler(rule)
    for number in numbers:
        made.set_epoch(number)
        yield list(made)


def epoch(number, rule="ranked_list"):
    return next(epochs([number], rule))


def parts(batches, images=4):
    """The images of each class of each batch, k in a row."""
    return np.concatenate([np.reshape(batch, (-1, images)) for batch in batches])


@pytest.mark.parametrize("rule", BY_CLASS)
def test_every_batch_is_full_and_grouped_by_class(rule):
    for number in range(3):
        batches = epoch(number, rule)
        assert len(batches) > 0
        for batch in batches:
            labels = LABELS[np.reshape(batch, (6, 4))]
            assert (labels == labels[:, :1]).all()
            assert rule == "independent" or len(np.unique(labels)) == 6


@pytest.mark.parametrize("rule", NAMES)
def test_a_batch_is_a_function_of_seed_and_step_in_whatever_order_it_is_asked(rule):
    steps = list(range(60))
    expected = [sampler(rule).batch(step).tolist() for step in steps]  # each by a sampler that has seen nothing
    forward, backward = sampler(rule), sampler(rule)
    assert [forward.batch(step).tolist() for step in steps] == expected
    assert [backward.batch(step).tolist() for step in reversed(steps)] == expected[::-1]
    assert pickle.loads(pickle.dumps(forward)).batch(7).tolist() == expected[7]
    assert sampler(rule, seed=1).batch(7).tolist() != expected[7]
    assert len({tuple(batch) for batch in expected}) == 60


@pytest.mark.parametrize("rule", NAMES)
def test_epochs_one_after_the_other_are_the_batches_by_step(rule):
    batches = [batch for number in range(4) for batch in epoch(number, rule)]
    made = sampler(rule)
    assert [made.batch(step).tolist() for step in range(len(batches))] == batches


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_of_all_processes_in_order_are_the_batch(rule, processes):
    for step in (0, 1, 40):
        shares = [sampler(rule).share(step, process, processes) for process in range(processes)]
        assert {len(share) for share in shares} == {24 // processes}
        assert np.concatenate(shares).tolist() == sampler(rule).batch(step).tolist()


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(InputError, match=r"6 x 4 images was asked for, which 5 processes cannot share equally; set"):
        sampler().share(0, 0, 5)
    with pytest.raises(InputError, match="one of the processes 0 to 1, got 2"):
        sampler().share(0, 2, 2)


def test_ranked_list_batches_are_what_they_always_were():
    def written(seed, step):  # the rule in its plainest form; runs that were made by it can be repeated
        number, place = divmod(step, 20 // 6)
        order = np.random.default_rng([seed, number]).permutation(20)[place * 6 : place * 6 + 6]
        random = np.random.default_rng([seed, number, place])
        return [i for c in order for i in np.resize(random.permutation(ITEMS[c]), 4)]

    for step in range(10):
        assert sampler(seed=3).batch(step).tolist() == written(3, step)


def test_ranked_list_has_no_class_twice_in_an_epoch_and_all_come_in_time():
    seen = [np.unique(LABELS[np.concatenate(epoch(number))]) for number in range(20)]
    assert all(len(labels) == 18 for labels in seen)
    assert len(np.unique(np.concatenate(seen))) == 20


def test_ranked_list_repeats_no_image_of_a_class_of_k_or_more_and_cycles_through_smaller_ones():
    for row in parts(epoch(0) + epoch(1)):
        counts = Counter(row.tolist()).values()
        assert len(counts) == min(4, LABELS[row[0]] + 1)
        assert max(counts) - min(counts) <= 1


def test_per_class_draws_classes_anew_for_each_batch_and_small_classes_with_replacement():
    batches = [sampler("per_class").batch(step) for step in range(400)]
    assert len(sampler("per_class")) == 210 // 24
    rows = parts(batches)
    times = Counter(LABELS[rows[:, 0]].tolist())
    assert all(60 <= times[label] <= 180 for label in range(20))  # 120 is expected, with a deviation of about 9
    in_a_row = [set(LABELS[a]) & set(LABELS[b]) for a, b in pairwise(batches)]
    assert any(in_a_row)
    assert min(map(len, in_a_row)) < max(map(len, in_a_row))
    kinds = {size: {len(set(row)) for row in rows.tolist() if LABELS[row[0]] + 1 == size} for size in (1, 2, 3, 4, 9)}
    assert kinds == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {4}, 9: {4}}  # two of a kind may be the same one four times


@pytest.mark.parametrize("number", range(5))
def test_identity_has_every_image_once_but_for_what_is_left_over(number):
    batches = epoch(number, "identity")
    times = Counter(parts(batches).ravel().tolist())
    per_class = Counter(LABELS[parts(batches)[:, 0]].tolist())
    for label in range(20):
        size = label + 1
        assert per_class[label] <= max(1, size // 4)
        if size >= 4:  # smaller ones are drawn with replacement
            assert all(times[item] <= 1 for item in ITEMS[label])
    with_parts_left = sum(per_class[label] < max(1, (label + 1) // 4) for label in range(20))
    assert with_parts_left < 6  # else there would have been another batch


def test_identity_draws_small_classes_with_replacement_and_each_class_as_likely():
    batches = list(epochs(range(150), "identity"))
    rows = parts([batch for each in batches for batch in each])
    assert {len(set(row)) for row in rows.tolist() if LABELS[row[0]] == 2} == {1, 2, 3}
    first = Counter(label for each in batches for label in LABELS[each[0]][::4].tolist())
    assert all(20 <= first[label] <= 75 for label in range(20))  # 150 x 6 / 20 = 45, with a deviation of 6
    assert {len(each) for each in batches} >= {6, 7}  # the length of an epoch depends on what is drawn


def test_remaining_pads_classes_from_their_own_and_prefers_those_that_have_more_left():
    batches = list(epochs(range(150), "remaining"))
    for each in batches[:10]:
        per_class = Counter(LABELS[parts(each)[:, 0]].tolist())
        assert all(per_class[label] <= -(-(label + 1) // 4) for label in range(20))  # its parts, rounded up
        assert sum(per_class[label] < -(-(label + 1) // 4) for label in range(20)) < 6
        times = Counter(parts(each).ravel().tolist())
        for label in (3, 7, 11):  # multiples of 4 are not padded
            assert all(times[item] <= 1 for item in ITEMS[label])
        if per_class[5] == 2:  # 6 images and 2 of them again: none is missing
            assert min(times[item] for item in ITEMS[5]) == 1
            assert sum(times[item] for item in ITEMS[5]) == 8
    first = Counter(label for each in batches for label in LABELS[each[0]][::4].tolist())
    few, many = sum(first[label] for label in range(4)), sum(first[label] for label in range(16, 20))
    assert many > 2.5 * few  # 5 parts to 1; without replacement somewhat less than 5 times as likely


def test_balanced_draws_images_with_replacement_from_classes_of_any_size():
    rows = parts([sampler("balanced").batch(step) for step in range(200)])
    assert {len(set(row)) for row in rows.tolist() if LABELS[row[0]] == 19} >= {3, 4}  # 20 images, and yet repeated
    assert len(sampler("balanced")) == 210 // 24
    assert set(LABELS[rows[:, 0]]) == set(range(20))


def test_independent_may_draw_a_class_twice_in_a_batch():
    classes = [len(set(LABELS[sampler("independent").batch(step)])) for step in range(200)]
    assert {4, 5, 6} <= set(classes)
    rows = parts([sampler("independent").batch(step) for step in range(200)])
    assert {len(set(row)) for row in rows.tolist() if LABELS[row[0]] == 19} >= {3, 4}


def test_shuffle_has_every_image_once_in_an_epoch_and_drops_what_is_left_over():
    for number in range(3):
        batches = epoch(number, "shuffle")
        assert [len(batch) for batch in batches] == [24] * (210 // 24)
        assert len(set(np.concatenate(batches).tolist())) == 210 // 24 * 24
    assert epoch(0, "shuffle") != epoch(1, "shuffle")


def test_shuffle_needs_images_and_no_classes():
    assert sorted(sampler("shuffle", 6, 4, labels=np.zeros(24, int)).batch(0)) == list(range(24))
    with pytest.raises(InputError, match=r"6 x 4 images was asked for, but there are 23 .* product is 23 or less"):
        sampler("shuffle", 6, 4, labels=np.arange(23))


@pytest.mark.parametrize("rule", BY_CLASS)
def test_as_many_classes_as_a_batch_needs_and_one_image_each_are_enough(rule):
    made = sampler(rule, 3, 2, labels=np.array([2**40, 2**24 + 1, 2**24]))  # float32 does not tell the last two apart
    assert len(made) == 1
    for step in range(20):
        batch = made.batch(step)
        assert (batch[::2] == batch[1::2]).all()
        assert rule == "independent" or sorted(set(batch.tolist())) == [0, 1, 2]


@pytest.mark.parametrize("rule", BY_CLASS)
def test_fewer_classes_than_a_batch_needs_are_refused_with_the_number_to_set(rule):
    with pytest.raises(InputError, match=r"21 classes was asked for, but there are 20.*batch.classes=20 or less"):
        sampler(rule, classes=21)
    with pytest.raises(InputError, match="at least 1 class and 1 image, got 0 x 4"):
        sampler(rule, classes=0)


def test_an_unknown_rule_is_refused_with_what_is_near():
    with pytest.raises(
        InputError, match=r"'balanse' is not a sampler; did you mean balanced\? Known: ranked_list, per"
    ):
        sampler("balanse")


@pytest.mark.parametrize("rule", NAMES)
def test_it_is_a_batch_sampler_of_a_data_loader(rule):
    made = sampler(rule)
    loader = torch.utils.data.DataLoader(torch.from_numpy(LABELS), batch_sampler=made)
    assert [batch.shape for batch in loader] == [(24,)] * len(made)


def test_the_listing_has_a_line_for_each_rule():
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == ["rule", *NAMES]
    assert max(map(len, lines)) <= 120
