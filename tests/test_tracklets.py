"""Clips of tracklets: the rules by their definitions, and batches by counting what comes."""

import pickle
from collections import Counter
from typing import get_args

import numpy as np
import pytest

from metricweight.checks import InputError
from metricweight.data.sampler import RULES as DRAWN
from metricweight.data.sampler import ClassBalancedSampler
from metricweight.data.tracklets import RULES, Clip, ClipSampler, TestClip, clip, judged_by, listing

HOW = get_args(Clip)


def drawn(length, frames, how="random", stride=1, seed=0):
    found = clip(length, frames, how, stride, np.random.default_rng(seed))
    assert found.dtype == np.int64
    assert len(found) == frames
    return found.tolist()


def many(length, frames, how, stride=1, times=2000):
    return [tuple(drawn(length, frames, how, stride, seed)) for seed in range(times)]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("length", "frames"), [(1, 1), (4, 4), (5, 4), (30, 4), (920, 15), (7, 1), (16, 16)])
def test_a_clip_has_different_frames_of_the_tracklet_in_order_of_time(how, length, frames):
    for seed in range(20):
        found = drawn(length, frames, how, 8, seed)
        assert found == sorted(set(found))
        assert found[0] >= 0
        assert found[-1] < length


@pytest.mark.parametrize("how", HOW)
def test_a_tracklet_with_fewer_frames_loops_from_its_first_on(how):
    assert drawn(3, 7, how) == [0, 1, 2, 0, 1, 2, 0]
    assert drawn(1, 4, how) == [0, 0, 0, 0]
    assert drawn(2, 3, how, 8) == [0, 1, 0]


def test_random_clips_are_every_choice_of_frames_as_likely():
    times = Counter(many(5, 2, "random"))
    assert len(times) == 10
    assert all(140 <= n <= 260 for n in times.values())  # 200 expected, with a deviation of about 13


def test_even_clips_are_those_of_the_definition_and_nothing_is_random():
    assert drawn(10, 4, "evenly") == [0, 2, 5, 7]  # floor of 0, 2.5, 5, 7.5
    assert drawn(920, 3, "evenly") == [0, 306, 613]
    assert len(set(many(10, 4, "evenly", times=20))) == 1


def test_restricted_clips_have_one_frame_of_each_equal_part_each_as_likely():
    parts = [range(2), range(2, 5), range(5, 7), range(7, 10)]  # 10 frames in 4 parts: 0, 2.5, 5, 7.5, 10
    found = many(10, 4, "restricted")
    for part, column in zip(parts, zip(*found, strict=True), strict=True):
        times = Counter(column)
        assert set(times) == set(part)
        assert all(0.8 * 2000 / len(part) <= n <= 1.2 * 2000 / len(part) for n in times.values())
    assert len(set(found)) == 2 * 3 * 2 * 3  # the parts do not depend on each other
    assert drawn(4, 4, "restricted") == [0, 1, 2, 3]


@pytest.mark.parametrize(("stride", "last"), [(1, 17), (2, 14), (6, 2)])
def test_consecutive_clips_start_anywhere_they_fit_and_go_on_by_the_stride(stride, last):
    found = Counter(many(20, 4, "consecutive", stride) if stride > 1 else many(20, 3, "consecutive", 1))
    assert all(set(np.diff(row)) == {stride} for row in found)
    assert {row[0] for row in found} == set(range(last if stride > 1 else 18))
    share = 2000 / len(found)
    assert all(0.55 * share <= n <= 1.55 * share for n in found.values())


@pytest.mark.parametrize(("length", "fits"), [(25, 8), (24, 7), (13, 4), (7, 2), (6, 1), (4, 1)])
def test_a_tracklet_too_short_for_the_stride_goes_by_the_largest_that_fits(length, fits):
    found = many(length, 4, "consecutive", 8, times=50)
    assert {tuple(np.diff(row)) for row in found} == {(fits,) * 3}


def test_a_clip_of_one_frame_is_any_frame_whatever_the_stride():
    for how in ("random", "restricted", "consecutive"):
        assert {row[0] for row in many(6, 1, how, 100, times=200)} == set(range(6))
    assert drawn(6, 1, "evenly") == [0]


def test_a_tracklet_is_judged_by_all_the_first_or_evenly_and_by_no_frame_twice():
    assert judged_by(920, "all", None).tolist() == list(range(920))
    assert judged_by(10, "first", 4).tolist() == [0, 1, 2, 3]
    assert judged_by(10, "evenly", 4).tolist() == [0, 2, 5, 7]
    for how in ("first", "evenly"):
        assert judged_by(3, how, 4).tolist() == [0, 1, 2]
        assert judged_by(4, how, 4).tolist() == [0, 1, 2, 3]
    assert judged_by(1, "all", None).dtype == judged_by(5, "evenly", 2).dtype == np.int64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: drawn(5, 2, "rnadom"), r"'rnadom' is not a rule for clips; did you mean random\? Known: random, ev"),
        (lambda: drawn(0, 2), "frames of a tracklet, at least 1, .* got 2 of 0 by 1"),
        (lambda: drawn(5, 0), "frames of a tracklet, at least 1, .* got 0 of 5 by 1"),
        (lambda: drawn(5, 2, "consecutive", 0), "a stride of at least 1; got 2 of 5 by 0"),
        (lambda: judged_by(5, "frist", 2), r"'frist' is not a rule for test clips; did you mean first\?"),
        (lambda: judged_by(0, "all", None), "a tracklet has at least 1 frame, got 0"),
        (lambda: judged_by(5, "all", 2), "judged by all of its frames, but 2 were asked for"),
        (lambda: judged_by(5, "first", None), "by frames 'first', say how many, at least 1; got None"),
        (lambda: judged_by(5, "evenly", 0), "by frames 'evenly', say how many, at least 1; got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, words):
    with pytest.raises(InputError, match=words):
        make()


def table():
    """Identity c of 12 has c + 1 tracklets, tracklet t of them 1 + t % 9 frames; their pictures in a random order."""
    labels = np.repeat(np.arange(12), np.arange(1, 13))
    lengths = 1 + np.arange(len(labels)) % 9
    tracklets = np.repeat(100 + 7 * np.random.default_rng(0).permutation(len(labels)), lengths)
    numbers = np.concatenate([np.arange(n) * 3 + 1 for n in lengths])
    order = np.random.default_rng(1).permutation(len(tracklets))
    return np.repeat(labels, lengths)[order], tracklets[order], numbers[order]


LABELS, TRACKLETS, NUMBERS = table()


def sampler(rule="ranked_list", classes=4, per_class=3, frames=5, labels=LABELS, tracklets=TRACKLETS, **options):
    numbers = options.pop("numbers", NUMBERS)
    sizes = {"classes": classes, "per_class": per_class, "frames": frames}
    return ClipSampler(labels, tracklets, numbers, **sizes, rule=rule, **options)


BY_CLASS = [rule.name for rule in DRAWN if rule.name != "shuffle"]


@pytest.mark.parametrize("rule", BY_CLASS)
@pytest.mark.parametrize("how", HOW)
def test_a_batch_is_identities_by_tracklets_by_frames_clip_after_clip(rule, how):
    made = sampler(rule, how=how, stride=2)
    assert (made.size, made.tracklets) == (60, 78)
    for step in range(30):
        batch = made.batch(step)
        assert batch.dtype == np.int64
        clips = batch.reshape(4, 3, 5)
        assert (LABELS[clips] == LABELS[clips][:, :1, :1]).all()
        assert (TRACKLETS[clips] == TRACKLETS[clips][:, :, :1]).all()
        if rule != "independent":
            assert len(set(LABELS[clips[:, 0, 0]])) == 4
        for row in clips.reshape(12, 5):
            length = np.isin(TRACKLETS, TRACKLETS[row[0]]).sum()
            numbers = NUMBERS[row].tolist()
            if length >= 5:
                assert numbers == sorted(set(numbers))
            else:
                assert numbers == [1 + 3 * (i % length) for i in range(5)]


@pytest.mark.parametrize("rule", ["ranked_list", "identity", "remaining"])
def test_an_identity_with_tracklets_enough_has_different_ones_in_a_batch(rule):
    for step in range(40):
        rows = TRACKLETS[sampler(rule).batch(step).reshape(4, 3, 5)[:, :, 0]]
        for row in rows.tolist():
            label = LABELS[row[0] == TRACKLETS][0]
            if label >= 2 and not (rule == "remaining" and label % 3 != 2):  # it has label + 1 tracklets, T = 3
                assert len(set(row)) == 3


def test_a_tracklet_that_comes_twice_in_a_batch_comes_with_frames_drawn_anew():
    labels, tracklets = np.repeat([0, 1], 50), np.repeat([0, 1], 50)  # T = 3 of one tracklet each
    made = sampler(
        classes=2, per_class=3, frames=4, labels=labels, tracklets=tracklets, numbers=np.tile(np.arange(50), 2)
    )
    assert made.few == 2
    for step in range(20):
        clips = made.batch(step).reshape(2, 3, 4)
        assert all(len({tuple(row) for row in one.tolist()}) == 3 for one in clips)
        assert (clips[0] % 50 != clips[1] % 50).any()
    every = [tuple(row) for step in range(50) for row in made.batch(step).reshape(6, 4).tolist()]
    assert len(set(every)) > 295  # of 300: steps differ, too


def test_frames_depend_on_the_seed_too_and_go_by_the_stride():
    one_each = {
        "labels": np.repeat([0, 1], 50),
        "tracklets": np.repeat([0, 1], 50),
        "numbers": np.tile(np.arange(50), 2),
    }

    def made(seed):
        clips = sampler(classes=2, per_class=1, frames=4, how="consecutive", stride=7, seed=seed, **one_each).batch(0)
        assert set(np.diff(clips.reshape(2, 4)).ravel()) == {7}
        return tuple(sorted(clips.tolist()))

    assert len({made(seed) for seed in range(20)}) > 15


def test_few_counts_the_identities_with_fewer_tracklets_than_a_batch_wants_of_each():
    assert [sampler(per_class=t).few for t in (1, 2, 3, 12, 13)] == [0, 1, 2, 11, 12]


@pytest.mark.parametrize("rule", [rule.name for rule in DRAWN])
def test_still_pictures_one_a_clip_are_the_batches_of_images(rule):
    labels = np.repeat(np.arange(20), np.arange(1, 21))[np.random.default_rng(3).permutation(210)]
    still = np.full(210, -1)
    images = ClassBalancedSampler(labels, 6, 4, seed=5, rule=rule)
    for how in HOW:
        clips = sampler(rule, 6, 4, 1, labels=labels, tracklets=still, numbers=still, how=how, seed=5)
        for step in range(40):
            assert clips.batch(step).tolist() == images.batch(step).tolist()
    twice = sampler(rule, 6, 4, 2, labels=labels, tracklets=still, numbers=still, seed=5)
    assert twice.batch(3).tolist() == np.repeat(images.batch(3), 2).tolist()


def test_stills_and_tracklets_mix():
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    tracklets = np.array([-1, 8, -1, 8, 3, -1, 3])
    numbers = np.array([-1, 2, -1, 1, 0, -1, 9])
    made = sampler(classes=2, per_class=3, frames=2, labels=labels, tracklets=tracklets, numbers=numbers)
    assert made.tracklets == 5
    seen = {tuple(row) for step in range(40) for row in made.batch(step).reshape(6, 2).tolist()}
    assert seen == {(0, 0), (2, 2), (3, 1), (4, 6), (5, 5)}  # the frame with number 1 comes before that with 2
    assert made.few == 1


@pytest.mark.parametrize("rule", [rule.name for rule in DRAWN])
def test_a_batch_is_a_function_of_seed_and_step_in_whatever_order_it_is_asked(rule):
    steps = list(range(40))
    expected = [sampler(rule).batch(step).tolist() for step in steps]  # each by a sampler that has seen nothing
    forward, backward = sampler(rule), sampler(rule)
    assert [forward.batch(step).tolist() for step in steps] == expected
    assert [backward.batch(step).tolist() for step in reversed(steps)] == expected[::-1]
    assert pickle.loads(pickle.dumps(forward)).batch(7).tolist() == expected[7]
    assert sampler(rule, seed=1).batch(7).tolist() != expected[7]
    assert len({tuple(batch) for batch in expected}) == 40


@pytest.mark.parametrize("rule", [rule.name for rule in DRAWN])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 12])
def test_shares_of_all_processes_in_order_are_the_batch_and_whole_clips(rule, processes):
    made = sampler(rule)
    for step in (0, 1, 25):
        shares = [made.share(step, process, processes) for process in range(processes)]
        assert {len(share) for share in shares} == {60 // processes}
        assert np.concatenate(shares).tolist() == made.batch(step).tolist()


def test_clips_that_cannot_be_shared_equally_are_refused_though_their_frames_could():
    with pytest.raises(
        InputError, match=r"4 x 3 tracklets was asked for, which 5 processes cannot share equally; set batch.classes or"
    ):
        sampler().share(0, 0, 5)  # 60 pictures


def test_what_there_is_too_little_of_is_said_of_tracklets():
    with pytest.raises(InputError, match=r"a batch of 13 classes was asked for, but there are 12 to train on"):
        sampler(classes=13)
    with pytest.raises(InputError, match=r"9 x 9 tracklets was asked for, but there are 78 to train on; set batch.cl"):
        sampler("shuffle", 9, 9)
    with pytest.raises(InputError, match="at least 1 class and 1 tracklet, got 4 x 0"):
        sampler(per_class=0)


def test_arguments_of_clips_are_looked_at_before_the_first_batch():
    with pytest.raises(InputError, match="'evnly' is not a rule for clips; did you mean evenly"):
        sampler(how="evnly")
    with pytest.raises(InputError, match="a stride of at least 1; got 5 of 5 by 0"):
        sampler(how="consecutive", stride=0)
    with pytest.raises(InputError, match="at least 1, by a stride of at least 1; got 0"):
        sampler(frames=0)


def test_a_tracklet_of_two_identities_is_refused_by_its_number():
    labels = LABELS.copy()
    frames = np.flatnonzero(TRACKLETS == 107)
    assert len(frames) > 1
    labels[frames[-1]] = 99
    with pytest.raises(InputError, match=r"tracklet 107 shows more than one identity, labels (\d+ and 99|99 and \d+);"):
        sampler(labels=labels)


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(InputError, match=r"one for each picture, but there are 10, 384 and 384\."):
        sampler(labels=LABELS[:10], tracklets=np.zeros(384), numbers=np.zeros(384))


def test_thousands_of_tracklets_are_grouped_and_drawn():
    lengths = np.full(8298, 61)
    labels = np.repeat(np.arange(8298) % 625, lengths)
    tracklets, numbers = np.repeat(np.arange(8298), lengths), np.tile(np.arange(61), 8298)
    made = sampler(classes=8, per_class=4, frames=4, labels=labels, tracklets=tracklets, numbers=numbers)
    assert (made.tracklets, made.few) == (8298, 0)
    assert len(made.batch(0)) == 128


def test_the_listing_has_a_line_for_each_rule():
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == ["clip", *HOW, *get_args(TestClip)]
    assert [row.name for row in RULES] == [*HOW, *get_args(TestClip)]
    assert max(map(len, lines)) <= 120
