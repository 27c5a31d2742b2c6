"""Decoding step by step with kept keys and values equals the full forward pass."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from tests.test_nn_attention_modules import filled

E, HEADS = 8, 2


def encoder(rng, batch_first=True, **options):
    layer = nn.TransformerEncoderLayer(E, HEADS, 12, batch_first=batch_first, **options)
    return filled(nn.TransformerEncoder(layer, 2, nn.LayerNorm(E)), rng).eval()


def decoder(rng, batch_first=True, **options):
    layer = nn.TransformerDecoderLayer(E, HEADS, 12, batch_first=batch_first, **options)
    return filled(nn.TransformerDecoder(layer, 2, nn.LayerNorm(E)), rng).eval()


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_near(got, want):
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 40, [7, 1, 1, 20, 11], [40]], ids=str)
@pytest.mark.parametrize("max_length", [None, 40])
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "rotary": nn.RotaryEmbedding(E // HEADS)}], ids=["plain", "rotary"])
def test_a_decoder_only_stack(options, max_length, chunks, batch_first, rng):
    model, x = encoder(rng, batch_first, **options), normal(rng, 3, 40, E)
    x = x if batch_first else np.ascontiguousarray(x.swapaxes(0, 1))
    axis = 1 if batch_first else 0
    cache, ends = nn.KeyValueCache(max_length), np.cumsum(chunks)[:-1]
    got = np.concatenate([model(part, cache=cache) for part in np.split(x, ends, axis=axis)], axis=axis)
    assert_near(got, model(x, is_causal=True))
    assert cache.lengths.tolist() == [40] * 3
    if max_length:
        with pytest.raises(ValueError, match="cache: expected at most max_length = 40 positions, got 41"):
            model(x[:, :1] if batch_first else x[:1], cache=cache)
        assert cache.lengths.tolist() == [40] * 3


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_decoder_looks_at_its_memory_once(norm_first, batch_first, rng):
    model, x, memory = decoder(rng, batch_first, norm_first=norm_first), normal(rng, 3, 6, E), normal(rng, 3, 5, E)
    padding = nn.padding_mask([5, 2, 0], 5)
    if not batch_first:
        x, memory = x.swapaxes(0, 1), memory.swapaxes(0, 1)
    want = model(x, memory, tgt_is_causal=True, memory_key_padding_mask=padding)
    cache, axis = nn.KeyValueCache(), 1 if batch_first else 0
    parts = np.split(x, 6, axis=axis)
    got = [model(parts[0], memory, memory_key_padding_mask=padding, cache=cache)]
    got += [model(part, np.full_like(memory, np.nan), memory_key_padding_mask=padding, cache=cache) for part in parts[1:]]
    assert_near(np.concatenate(got, axis=axis), want)


def test_memory_of_other_widths_and_weights(rng):
    layer = filled(nn.MultiheadAttention(E, HEADS, kdim=3, vdim=5, batch_first=True), rng)
    x, key, value = normal(rng, 2, 4, E), normal(rng, 2, 6, 3), normal(rng, 2, 6, 5)
    cache = nn.KeyValueCache()
    want, weights = layer(x, key, value, average_attn_weights=False)
    for t in range(4):
        got, some = layer(x[:, t : t + 1], key, value, average_attn_weights=False, cache=cache)
        assert_near(got, want[:, t : t + 1])
        assert_near(some, weights[:, :, t : t + 1])
    # Other weights afterwards, memory renewed for one row.
    cache.reset([1])
    key[1], value[1] = 1.0, 2.0
    assert_near(layer(x, key, value, cache=cache)[0], layer(x, key, value)[0])


def test_weights_of_steps(rng):
    layer = filled(nn.MultiheadAttention(E, HEADS), rng)
    x, cache = normal(rng, 5, 2, E), nn.KeyValueCache()
    want, weights = layer(x, is_causal=True)
    for t in range(5):
        got, some = layer(x[t : t + 1], cache=cache)
        assert_near(got, want[t : t + 1])
        assert_near(some, weights[:, t : t + 1, : t + 1])


@pytest.mark.parametrize("rotary", [None, nn.RotaryEmbedding(E // HEADS)])
def test_rows_begin_anew_and_have_lengths_of_their_own(rotary, rng):
    """After a reset of some rows each row equals a full forward pass of what it has seen since."""
    model = encoder(rng, rotary=rotary)
    history = [np.zeros((0, E), np.float32) for _ in range(3)]
    cache = nn.KeyValueCache()
    for T, reset in ((3, None), (1, 1), (2, [True, False, False]), (1, slice(1, 3)), (5, (0,)), (1, None)):
        if reset is not None:
            cache.reset(reset)
            for row in np.arange(3)[list(reset) if isinstance(reset, tuple) else reset].reshape(-1):
                history[row] = history[row][:0]
        x = normal(rng, 3, T, E)
        history = [np.concatenate([old, new]) for old, new in zip(history, x, strict=True)]
        got = model(x, cache=cache)
        assert cache.lengths.tolist() == [len(h) for h in history]
        for row, seen in enumerate(history):
            assert_near(got[row], model(seen, is_causal=True)[-T:])


def test_prompts_of_unequal_lengths(rng):
    """Right padding of a chunk says how many positions each row has; the padding itself is not kept."""
    model, lengths = encoder(rng), [5, 2, 0]
    prompt, rest = normal(rng, 3, 5, E), normal(rng, 3, 4, E)
    padding = nn.padding_mask(lengths)
    prompt[padding] = np.nan
    cache = nn.KeyValueCache(9)
    first = model(prompt, src_key_padding_mask=padding, cache=cache)
    assert cache.lengths.tolist() == lengths
    then = np.concatenate([model(rest[:, :3], cache=cache), model(rest[:, 3:], cache=cache)], axis=1)
    for row, n in enumerate(lengths):
        want = model(np.concatenate([prompt[row, :n], rest[row]]), is_causal=True)
        assert_near(np.concatenate([first[row, :n], then[row]]), want)


def test_masks_over_the_cache(rng):
    """attn_mask counts the cache's positions; with rows of unequal lengths too."""
    layer = filled(nn.MultiheadAttention(E, HEADS, batch_first=True), rng)
    x, numbers = normal(rng, 2, 6, E), normal(rng, 6, 6)
    blocked = rng.random((2 * HEADS, 6, 6)) < 0.3
    for mask in (numbers, blocked, np.where(blocked, -np.inf, 0.5)):
        want, _ = layer(x, attn_mask=mask, is_causal=True)
        cache = nn.KeyValueCache()
        got = [layer(x[:, a:b], attn_mask=mask[..., a:b, :b], cache=cache)[0] for a, b in ((0, 2), (2, 3), (3, 6))]
        assert_near(np.concatenate(got, axis=1), want)
        # Row 1 anew: its positions 0, 1 are given beside row 0's 6, 7.
        cache.reset(1)
        more = normal(rng, 2, 2, E)
        wide = np.zeros((2, 8), np.float32)
        wide[:, 1] = -np.inf
        got, _ = layer(more, attn_mask=wide, cache=cache)
        full = np.zeros((8, 8), np.float32)
        full[:, 1] = -np.inf
        assert_near(got[1], layer(more[1:], attn_mask=full[:2, :2], is_causal=True)[0][0])
        whole = np.concatenate([x[:1], more[:1]], axis=1)
        assert_near(got[0], layer(whole, attn_mask=full, is_causal=True)[0][0, 6:])


@pytest.mark.parametrize("indices", [[2, 0, 1], [1, 1, 1], [0, 0, 1, 2, 2], [1]], ids=str)
def test_reordering_for_beam_search(indices, rng):
    model, x, memory = decoder(rng), normal(rng, 3, 4, E), normal(rng, 3, 5, E)
    cache = nn.KeyValueCache()
    model(x, memory, cache=cache)
    cache.reorder(indices)
    assert cache.lengths.tolist() == [4] * len(indices)
    more = normal(rng, len(indices), 2, E)
    got = model(more, memory[indices], cache=cache)
    want = model(np.concatenate([x[indices], more], axis=1), memory[indices], tgt_is_causal=True)
    assert_near(got, want[:, 4:])


def test_some_rows_with_another_memory(rng):
    model, x, memory, other = decoder(rng), normal(rng, 3, 4, E), normal(rng, 3, 5, E), normal(rng, 3, 5, E)
    cache = nn.KeyValueCache()
    model(x, memory, cache=cache)
    cache.reset([1])
    more = normal(rng, 3, 1, E)
    got = model(more, other, cache=cache)
    assert_near(got[1], model(more[1], other[1]))
    whole = np.concatenate([x, more], axis=1)
    assert_near(got[[0, 2], 0], model(whole, memory, tgt_is_causal=True)[[0, 2], -1])
    cache.reset([0])
    with pytest.raises(ValueError, match="memory: expected 5 positions, as in the first call, got 4"):
        model(more, other[:, :4], cache=cache)
    cache.reset()
    assert cache.lengths.tolist() == []
    assert_near(model(x[:2], other[:2], cache=cache), model(x[:2], other[:2], tgt_is_causal=True))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_memory_of_another_length_wants_a_reset(batch_first, rng):
    model, axis = decoder(rng, batch_first), 1 if batch_first else 0
    x, memory = normal(rng, 3, 3, E), normal(rng, 3, 3, E)
    other = np.concatenate([memory, memory], axis=axis)
    cache = nn.KeyValueCache()
    model(x, memory, cache=cache)
    with pytest.raises(ValueError, match=r"^memory: expected 3 positions, as in the first call, got 6; cache.reset\(\) begins anew"):
        model(x, other, cache=cache)
    assert cache.lengths.tolist() == [3, 3, 3]
    cache.reset()
    assert_near(model(x, other, cache=cache), model(x, other, tgt_is_causal=True))
    layer = nn.MultiheadAttention(E, HEADS, batch_first=batch_first)
    for kept in (cache, nn.KeyValueCache()):
        with pytest.raises(ValueError, match=r"^value: expected 3 positions, as key has, got 6"):
            layer(x, memory, other, cache=kept)


def test_help_shows_what_a_user_calls():
    assert {name for name in dir(nn.KeyValueCache) if not name.startswith("_")} == {"lengths", "reorder", "reset"}


def test_single_sequences_and_tensors(rng):
    model, x = encoder(rng), normal(rng, 5, E)
    want, cache = model(x, is_causal=True), nn.KeyValueCache()
    with fs.no_grad():
        got = [model(fs.Tensor(x[t : t + 1]), cache=cache) for t in range(5)]
    assert all(isinstance(y, fs.Tensor) and not y.requires_grad for y in got)
    assert_near(np.concatenate([y.data for y in got]), want)


def test_a_cache_serves_one_model_and_is_copied(rng):
    one, two, x = encoder(rng), encoder(rng), normal(rng, 2, 4, E)
    cache = nn.KeyValueCache()
    one(x[:, :2], cache=cache)
    fork = copy.deepcopy(cache)
    for kept in (cache, fork):
        assert_near(one(x[:, 2:], cache=kept), one(x, is_causal=True)[:, 2:])
    assert repr(fork) == "KeyValueCache(lengths=[4, 4])"
    assert repr(nn.KeyValueCache(7)) == "KeyValueCache(max_length=7, lengths=[])"
    with pytest.raises(ValueError, match="cache: expected the model that filled it, got a layer that it has not seen, with 4 positions in it"):
        two(x[:, :1], cache=fork)
    assert fork.lengths.tolist() == [4, 4]
    fork.reset()
    assert_near(two(x, cache=fork), two(x, is_causal=True))


@pytest.mark.parametrize(
    "other",
    [
        lambda m, c: (copy.deepcopy(m), c),
        lambda m, c: (m, pickle.loads(pickle.dumps(c))),
        lambda m, c: (copy.deepcopy(m), copy.deepcopy(c)),
        lambda m, c: (pickle.loads(pickle.dumps(m)), c),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_copy_of_the_model_is_another_model(padded, other, rng):
    model, cache, x = decoder(rng), nn.KeyValueCache(), normal(rng, 2, 5, E)
    model(x[:, :4], x, tgt_key_padding_mask=nn.padding_mask([4, 2]) if padded else None, cache=cache)
    stranger, kept = other(model, cache)
    for T in (1, 2):
        with pytest.raises(ValueError, match=r"cache: expected the model that filled it, .* with 4 positions in it; cache.reset"):
            stranger(x[:, :T], x, cache=kept)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("cache_first", [False, True])
def test_model_and_cache_are_copied_together(cache_first, copied, rng):
    model, cache, x, memory = decoder(rng), nn.KeyValueCache(), normal(rng, 2, 6, E), normal(rng, 2, 3, E)
    want = model(x, memory, tgt_is_causal=True)
    model(x[:, :4], memory, cache=cache)
    pair = copied((cache, model) if cache_first else (model, cache))
    twin, fork = pair[::-1] if cache_first else pair
    for p in model.parameters():
        p.data[...] = 0  # the pair looks at its own weights
    nothing = np.full_like(memory, np.nan)
    for t in (4, 5):
        assert_near(twin(x[:, t : t + 1], nothing, cache=fork), want[:, t : t + 1])
    assert fork.lengths.tolist() == [6, 6]
    assert cache.lengths.tolist() == [4, 4]


def test_a_copy_of_one_layer_takes_its_own_part_along(rng):
    layers, cache, x = [nn.TransformerEncoderLayer(E, HEADS, 12, 0.0, batch_first=True, rng=k) for k in range(2)], nn.KeyValueCache(), normal(rng, 2, 5, E)
    want = layers[1](layers[0](x, is_causal=True), is_causal=True)
    layers[1](layers[0](x[:, :4], cache=cache), cache=cache)
    fork, second = copy.deepcopy((cache, layers[1]))
    assert_near(second(layers[0](x[:, 4:], cache=fork), cache=fork), want[:, 4:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, c, x: m(x[:1], cache=c), ValueError, "src: expected 2 rows, as the cache has, got 1"),
        (lambda m, c, x: c.reset([2]), IndexError, "rows: expected an index, a slice, a sequence or a mask for 2 rows"),
        (lambda m, c, x: c.reset(np.zeros(3, bool)), IndexError, "rows: expected an index"),
        (lambda m, c, x: c.reorder([0, 2]), IndexError, r"indices: expected rows from 0 to 1, got \[0, 2\]"),
        (lambda m, c, x: c.reorder([[0]]), ValueError, r"indices: expected shape \(B,\), got \(1, 1\)"),
        (lambda m, c, x: c.reorder([0.0]), TypeError, "indices: expected integers, got float64"),
        (
            lambda m, c, x: m(x, src_key_padding_mask=np.array([[True, False, False]] * 2), cache=c),
            ValueError,
            "key_padding_mask: expected True past the end of each row only",
        ),
        (lambda m, c, x: m(x, src_key_padding_mask=np.zeros((2, 6), bool), cache=c), ValueError, r"key_padding_mask: expected bool of shape \(2, 3\)"),
        (lambda m, c, x: m(x, mask=np.ones((3, 3), bool), cache=c), ValueError, r"^mask: expected shape \(3, 6\)"),
        (lambda m, c, x: nn.KeyValueCache(0), ValueError, "max_length: expected at least 1, got 0"),
    ],
)
def test_what_a_cache_refuses(call, error, message, rng):
    model, cache, x = encoder(rng), nn.KeyValueCache(), normal(rng, 2, 3, E)
    model(x, cache=cache)
    with pytest.raises(error, match=message):
        call(model, cache, x)
    assert cache.lengths.tolist() == [3, 3]


def test_a_call_that_fails_leaves_the_cache_as_it_was(rng):
    """Wrong masks of the memory are found after the layer's self-attention has taken the position."""
    model, x, memory = decoder(rng), normal(rng, 2, 4, E), normal(rng, 2, 5, E)
    wrong = np.zeros((2, 3), bool)
    cache = nn.KeyValueCache()
    for t in range(4):
        with pytest.raises(ValueError, match="key_padding_mask: expected shape"):
            model(x[:, t : t + 1], memory, memory_key_padding_mask=wrong, cache=cache)
        y = model(x[:, t : t + 1], memory, cache=cache)
        cache.reset([1]) if t == 1 else None
    assert cache.lengths.tolist() == [4, 2]
    assert_near(y[0], model(x[0], memory[0], tgt_is_causal=True)[-1:])
    assert_near(y[1], model(x[1, 2:], memory[1], tgt_is_causal=True)[-1:])
    second, good = model.layers[1], model.layers[1].linear2.forward
    second.linear2.forward = lambda x: 1 / 0  # between two layers
    with pytest.raises(ZeroDivisionError):
        model(x[:, :1], memory, cache=cache)
    second.linear2.forward = good
    assert {tuple(part.lengths) for part in cache._own.values()} == {(4, 2)}
