"""Images that come twice: the same to the bit, or nearly, as after another compression.

Near ones are found by a perceptual hash, 64 bits of the lowest frequencies of an image (pHash, as
the package ImageHash computes it; Zauner 2010), and counted only if their pixels agree, too: on
small pictures the hash alone takes two pairs of trousers for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

FREQUENCIES = 8  # of each side: 64 bits
BITS = 6  # by which the hashes of near duplicates may differ
# The pixels' correlation, from which on two images are one; brightness and contrast do not count.
ALIKE = 0.995
# Of sets in which all is alike: partners of an image from which on it is compared with none that
# has as many, and pairs of close hashes whose pixels are compared, a minute's work.
PARTNERS, TRIES = 50, 3 * 10**7
FLAT = 2.0  # standard deviation of the greys of an image on which nothing can be seen


def digests(images: np.ndarray) -> np.ndarray:
    """Return a number uint64 for each of ``images [N, ...]``, the same for the same bits only."""
    found = [hashlib.blake2b(np.ascontiguousarray(i).data, digest_size=8).digest() for i in images]
    return np.frombuffer(b"".join(found), np.uint64)


def perceptual_hashes(greys: np.ndarray) -> np.ndarray:
    """Return a number uint64 for each of ``greys [N, h, w]``, of which alike images share bits."""
    low = np.zeros((len(greys), FREQUENCIES, FREQUENCIES))
    rows, columns = map(_cosines, greys.shape[1:])
    low[:, : len(rows), : len(columns)] = rows @ greys.astype(np.float64) @ columns.T
    low = low.reshape(len(greys), -1)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return bits.view(np.uint64).reshape(-1)


def _cosines(side: int) -> np.ndarray:
    """Return the lowest rows of the discrete cosine transform (DCT-II) of so many pixels."""
    frequencies = np.arange(min(FREQUENCIES, side))[:, None]
    return np.cos(np.pi * frequencies * (np.arange(side) + 0.5) / side)


def exact_pairs(digests: np.ndarray, splits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return pairs ``[n, 2]`` of the same image, the earlier first.

    Each that comes again stands beside the first of each split and label before it, so that a
    thousand copies do not make half a million pairs.
    """
    _, group, sizes = np.unique(digests, return_inverse=True, return_counts=True)
    again = np.flatnonzero(sizes[group] > 1)
    first: dict[int, dict[Any, int]] = {}
    pairs = []
    for place in again.tolist():
        seen = first.setdefault(int(group[place]), {})
        pairs += [(earlier, place) for earlier in seen.values()]
        seen.setdefault((int(splits[place]), int(labels[place])), place)
    return np.array(pairs, np.int64).reshape(-1, 2)


def near_pairs(
    greys: np.ndarray, digests: np.ndarray, splits: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return pairs ``[n, 2]`` of images that are nearly the same, the earlier first, and how much.

    ``greys [N, h, w]`` uint8 are small pictures of them. Of copies to the bit one of each split and
    label is compared; what has no contrast is left out. The last value tells whether all were
    compared, or too many are alike.
    """
    kinds = np.stack([digests, splits.astype(np.uint64), labels.astype(np.uint64)], axis=1)
    places = np.sort(np.unique(kinds, axis=0, return_index=True)[1])
    flat = greys.reshape(len(greys), -1)
    places = np.concatenate([part[flat[part].std(axis=1) > FLAT] for part in _parts(places)])
    partners, tried = np.zeros(len(greys), np.int64), 0
    found, alike = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for close in _close(perceptual_hashes(greys[places])):
        for pairs in _parts(places[close]):
            pairs = pairs[partners[pairs].min(axis=1) < PARTNERS]
            tried += len(pairs)
            likeness = _correlation(flat[pairs[:, 0]], flat[pairs[:, 1]])
            keep = (likeness >= ALIKE) & (digests[pairs[:, 0]] != digests[pairs[:, 1]])
            np.add.at(partners, pairs[keep], 1)
            found.append(pairs[keep])
            alike.append(likeness[keep])
        if tried > TRIES:
            break
    pairs = np.sort(np.concatenate(found), axis=1)
    pairs, which = np.unique(pairs, axis=0, return_index=True)
    return pairs, np.concatenate(alike)[which], tried <= TRIES


def _parts(rows: np.ndarray, size: int = 2**13) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, max(1, len(rows)), size))


def _close(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield pairs ``[n, 2]`` of places of hashes that differ by `BITS` at most; some come again.

    Of so many bits and one more groups, such two share one: only what does is compared.
    """
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), 8), axis=1)
    for group in range(BITS + 1):
        own = bits[:, group :: BITS + 1].astype(np.int64)
        keys = own @ (1 << np.arange(own.shape[1]))
        order = np.lexsort((hashes, keys))  # equal ones side by side
        keys = keys[order]
        ends = np.searchsorted(keys, keys, "right")
        at, step = np.arange(len(keys)), 1
        while len(at := at[at + step < ends[at]]):
            pairs = np.stack([order[at], order[at + step]], axis=1)
            apart = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
            yield pairs[apart <= BITS]
            step += 1


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation of the pixels ``[n, pixels]`` of each image with those of another."""
    a, b = (part - part.mean(axis=1, keepdims=True) for part in map(np.float32, (a, b)))
    return np.einsum("ij,ij->i", a, b) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
