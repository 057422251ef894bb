"""Every rule once more: naive, in float64, in all coordinates, without the library.

Each oracle takes the rows, f (a count, of which rules that split rows take a fraction
too) and, where its definition has them, weights and a reference; meta-rules take the
oracle they hold first. Loops over rows and plain formulas: slow, and easy to compare
with the paper.
"""

from itertools import combinations
from math import ceil, comb

import numpy as np

norm = np.linalg.norm


def distances(x):
    """‖x_i − x_j‖ from differences."""
    return np.array([[norm(a - b) for b in x] for a in x])


def nearest(distance, k):
    """The k smallest, the first of equal ones."""
    return sorted(range(len(distance)), key=lambda i: (distance[i], i))[:k]


def uniform(x, weights):
    return np.ones(len(x)) if weights is None else np.asarray(weights, float)


def mean(x, f, weights=None):
    w = uniform(x, weights)
    return sum(wi * xi for wi, xi in zip(w, x, strict=True)) / w.sum()


def cwmed(x, f, weights=None):
    w = uniform(x, weights)
    return np.array([weighted_median(column, w) for column in x.T])


def weighted_median(values, w):
    """Where the cumulative weight passes one half; midpoint if it is one half."""
    total, below = w.sum(), 0.0
    order = sorted((i for i in range(len(w)) if w[i] > 0), key=lambda i: values[i])
    for here, after in zip(order, [*order[1:], None], strict=True):
        below += w[here]
        if np.isclose(2 * below, total, rtol=1e-12):
            return (values[here] + values[after]) / 2
        if 2 * below > total:
            return values[here]


def cwtm(x, f, weights=None):
    w = uniform(x, weights)
    return np.array([trimmed(column, w, f / len(x) * w.sum()) for column in x.T])


def trimmed(values, w, cut):
    """Mean of what is left between two cuts of the line on which the weights lie."""
    start, mass, total = 0.0, 0.0, 0.0
    for i in np.argsort(values, kind="stable"):
        left = min(start + w[i], w.sum() - cut) - max(start, cut)
        start += w[i]
        if left > 1e-12 * w.sum():
            mass, total = mass + left, total + left * values[i]
    return total / mass


def kept(distance, f, w):
    """Weights of the nearest rows, up to (1 − f/n) of all weight."""
    result, room = np.zeros(len(w)), (1 - f / len(w)) * w.sum()
    for i in nearest(distance, len(w)):
        taken = min(w[i], room)
        if taken > 1e-12 * w.sum():
            result[i], room = taken, room - taken
    return result / result.sum()


def meamed(x, f, weights=None):
    w = uniform(x, weights)

    def one(column):
        middle = weighted_median(column, w)
        return kept(np.abs(column - middle), f, w) @ column

    return np.array([one(column) for column in x.T])


def gm(x, f, weights=None):
    """Minimise Σ w ‖x − y‖, smoothed ever less, by Newton's method with halving."""
    w = uniform(x, weights) / uniform(x, weights).sum()
    y, scale = cwmed(x, f, weights), np.median(distances(x)) or 1.0
    for smoothing in scale * 10.0 ** -np.arange(1, 11):
        for _ in range(100):
            r = np.sqrt(((x - y) ** 2).sum(axis=1) + smoothing**2)
            gradient = (w / r) @ (y - x)
            u = (y - x) / r[:, None]
            hessian = (w / r).sum() * np.eye(len(y)) - (u.T * (w / r)) @ u
            step = np.linalg.lstsq(hessian, gradient)[0]
            size = 1.0
            while size > 1e-12 and _smooth(x, y - size * step, w, smoothing) > r @ w:
                size /= 2
            y = y - size * step
            if norm(size * step) <= 1e-12 * scale:
                break
    candidates = [y, *x]
    return min(candidates, key=lambda c: distance_sum(x, c, w))


def _smooth(x, y, w, smoothing):
    return w @ np.sqrt(((x - y) ** 2).sum(axis=1) + smoothing**2)


def distance_sum(x, y, weights=None):
    """Σ w ‖x − y‖: what the geometric median minimises."""
    return uniform(x, weights) @ norm(x - y, axis=1)


def krum_order(x, f):
    squared, n = distances(x) ** 2, len(x)
    scores = [sum(sorted(np.delete(squared[i], i))[: n - f - 2]) for i in range(n)]
    return nearest(scores, n)


def krum(x, f):
    return x[krum_order(x, f)[0]]


def multikrum(x, f, m=None):
    return x[krum_order(x, f)[: m or len(x) - f]].mean(axis=0)


def bulyan(x, f):
    squared, left, chosen = distances(x) ** 2, list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        count = max(1, len(left) - f - 2)
        scores = [
            sum(sorted(squared[i, j] for j in left if j != i)[:count]) for i in left
        ]
        chosen.append(left.pop(nearest(scores, 1)[0]))
    y = np.sort(x[chosen], axis=0)
    columns = []
    for column in y.T:
        order = nearest(np.abs(column - np.median(column)), len(y) - 2 * f)
        columns.append(column[order].mean())
    return np.array(columns)


def diameter(x):
    return max((norm(a - b) for a, b in combinations(x, 2)), default=0.0)


def spread(x):
    """The largest eigenvalue of the scatter of rows about their mean."""
    return norm(x - x.mean(axis=0), ord=2) ** 2


def best_subset(x, f, measure):
    return min(
        (list(s) for s in combinations(range(len(x)), len(x) - f)),
        key=lambda s: measure(x[s]),
    )


def mda(x, f):
    return x[best_subset(x, f, diameter)].mean(axis=0)


def smea(x, f):
    return x[best_subset(x, f, spread)].mean(axis=0)


def monna(x, f, weights=None, pivot=0):
    return kept(norm(x - x[pivot], axis=1), f, uniform(x, weights)) @ x


def cge(x, f, weights=None):
    return kept(norm(x, axis=1), f, uniform(x, weights)) @ x


def caf(x, f, weights=None):
    c, least, result = uniform(x, weights), np.inf, mean(x, f, weights)
    end = (1 - 2 * f / len(x) + 1e-12) * c.sum()
    while c.sum() > end:
        middle = c @ x / c.sum()
        apart = x - middle
        covariance = sum(ci * np.outer(a, a) for ci, a in zip(c, apart, strict=True))
        values, vectors = np.linalg.eigh(covariance / c.sum())
        if values[-1] < least:
            least, result = values[-1], middle
        tau = (apart @ vectors[:, -1]) ** 2
        worst = tau[c > 0].max()
        if worst == 0:
            break
        c = c * np.clip(1 - tau / worst, 0, None)
    return result


def dnc(x, f):
    left = list(range(len(x)))
    for _ in range(f):
        apart = x[left] - x[left].mean(axis=0)
        direction = np.linalg.svd(apart, full_matrices=False)[2][0]
        left.pop(int(np.argmax(np.abs(apart @ direction))))
    return x[left].mean(axis=0)


def sampled_dnc(x, f, subset=10_000, iterations=1, factor=1.0, seed=0):
    n, d = x.shape
    rng = np.random.default_rng(seed)
    sets = []
    for _ in range(iterations):
        drawn = sorted(rng.choice(d, min(subset, d), replace=False))
        apart = x[:, drawn] - x[:, drawn].mean(axis=0)
        direction = np.linalg.svd(apart, full_matrices=False)[2][0]
        sets.append(nearest((apart @ direction) ** 2, n - ceil(factor * f)))
    times = [sum(i in one for one in sets) for i in range(n)]
    return x[[i for i in range(n) if times[i] == max(times)]].mean(axis=0)


def cclip(x, f, weights=None, reference=None, radius=10.0, steps=1):
    v = np.zeros(x.shape[1]) if reference is None else reference
    for _ in range(steps):
        pulls = [(a - v) * min(1.0, radius / max(norm(a - v), 1e-300)) for a in x]
        v = v + mean(np.array(pulls), f, weights)
    return v


def fltrust(x, f, reference, weights=None):
    trust, scaled = [], []
    for row, w in zip(x, uniform(x, weights), strict=True):
        length = norm(row) or 1.0
        trust.append(w * max(0.0, row @ reference / (length * norm(reference))))
        scaled.append(row * norm(reference) / length)
    return mean(np.array(scaled), f, trust) if any(trust) else reference


def zeno(base, x, f, reference):
    scores = x @ reference
    lowest = sorted(range(len(x)), key=lambda i: scores[i])[:f]
    dropped = [i for i in lowest if scores[i] < 0]
    left = len(x) - len(dropped)
    return base(np.delete(x, dropped, axis=0), min(f, (left - 1) // 2))


def huber(x, f, weights=None, radius=None):
    """Gradient descent with step 1: the loss is 1-smooth."""
    w = uniform(x, weights) / uniform(x, weights).sum()
    y = gm(x, f, weights)
    if radius is None:
        r = norm(x - y, axis=1)
        order = [i for i in nearest(r, len(x)) if w[i] > 0]
        upto = np.cumsum(w[order])
        radius = r[order[int(np.argmax(upto >= 0.5 - 1e-12))]]
    if radius == 0:
        return y
    for _ in range(3000):
        r = np.maximum(norm(x - y, axis=1), 1e-300)
        y = y + (w * np.minimum(1.0, radius / r)) @ (x - y)
    return y


def cosine(a, b):
    return a @ b / ((norm(a) or 1.0) * (norm(b) or 1.0))


def foolsgold(x, f):
    n = len(x)
    s = [[cosine(a, b) for b in x] for a in x]
    most = [max([0.0] + [s[i][j] for j in range(n) if j != i]) for i in range(n)]
    alpha = []
    for i in range(n):
        largest = -1.0
        for j in range(n):
            pardon = most[i] / most[j] if most[j] > most[i] else 1.0
            if j != i:
                largest = max(largest, s[i][j] * pardon)
        alpha.append(min(1.0, max(0.0, 1 - largest)))
    alpha = [a if a > 1e-12 else 0.0 for a in alpha]
    top = max(alpha)
    if top == 0:
        return 0 * x[0]
    for i in range(n):
        a = min(alpha[i] / top, 0.99)
        alpha[i] = min(1.0, max(0.0, np.log(a / (1 - a)) + 0.5)) if a > 0 else 0.0
    return mean(x, f, alpha)


def flame(x, f):
    n = len(x)
    apart = np.array([[1 - cosine(a, b) for b in x] for a in x])
    for t in sorted(apart[i, j] for i, j in combinations(range(n), 2)) or [0.0]:
        for start in range(n):
            linked, new = {start}, [start]
            while new:
                i = new.pop()
                more = [
                    j for j in range(n) if j not in linked and apart[i, j] <= t + 1e-12
                ]
                linked.update(more)
                new += more
            if 2 * len(linked) > n:
                return clip(x, lower_median(x))[sorted(linked)].mean(axis=0)


def lower_median(x):
    return sorted(norm(x, axis=1))[(len(x) - 1) // 2]


def signguard(x, f, shortest=0.1, longest=3.0):
    n, middle = len(x), lower_median(x)
    signs = [[np.mean(row > 0), np.mean(row == 0), np.mean(row < 0)] for row in x]
    points = np.array(signs)
    reach = [sorted(norm(points - p, axis=1))[max(1, n // 2) - 1] for p in points]
    width = sum(reach) / n + 1e-9
    modes = points.copy()
    for _ in range(100):
        moved = np.array([within(points, m, width).mean(axis=0) for m in modes])
        shift = abs(moved - modes).max()
        modes = moved
        if shift <= 1e-3 * width:
            break
    centres = []
    for i in nearest([-len(within(points, m, width)) for m in modes], n):
        if all(norm(modes[i] - c) > width for c in centres):
            centres.append(modes[i])
    label = [nearest([norm(p - c) for c in centres], 1)[0] for p in points]
    common = max(sorted(set(label)), key=label.count)
    kept = [
        row * min(1.0, middle / (norm(row) or 1.0))
        for row, own in zip(x, label, strict=True)
        if own == common and shortest * middle <= norm(row) <= longest * middle
    ]
    return sum(kept, 0 * x[0]) / max(1, len(kept))


def lasa(x, f, sparsity=0.3, lambda_n=1.0, lambda_s=1.0, widths=None):
    d, x = x.shape[1], clip(x, lower_median(x))
    for row in x:
        row[abs(row) < sorted(abs(row))[int(sparsity * d + 1e-9)]] = 0.0
    found = []
    for layer in np.split(x, np.cumsum(widths or [d])[:-1], axis=1):
        long = ordinary([norm(row) for row in layer], lambda_n)
        sums = [(np.sign(row).sum(), abs(np.sign(row)).sum()) for row in layer]
        signs = ordinary([0.5 * (1 + s / (a or 1)) for s, a in sums], lambda_s)
        found.append(layer[sorted(long & signs) or range(len(x))].mean(axis=0))
    return np.concatenate(found)


def ordinary(values, radius):
    v = np.array(values)
    limit = radius * v.std() + 1e-9 * max(abs(v))
    return {i for i in range(len(v)) if abs(v[i] - np.median(v)) <= limit}


def within(points, centre, width):
    return points[norm(points - centre, axis=1) <= width]


def distinct(base, x, f, nearer=0.05):
    n, apart = len(x), distances(x)
    t = nearer * min(sorted(row)[n - f - 1] for row in apart)
    groups = []
    for i in range(n):
        for group in groups:
            if x[i].any() and all(apart[i, j] <= t and x[j].any() for j in group):
                group.append(i)
                break
        else:
            groups.append([i])
    copies = n - len(groups)
    if copies > f or max(map(len, groups)) > f:
        return base(x, f)
    return base(np.array([x[group].mean(axis=0) for group in groups]), f - copies)


def ctma(base, x, f, **given):
    anchor = base(x, f, **given)
    return kept(norm(x - anchor, axis=1), f, uniform(x, given.get("weights"))) @ x


def nnm(base, x, f, **given):
    w = uniform(x, given.get("weights"))
    mixed = [kept(row, f, w) @ x for row in distances(x)]
    return base(np.array(mixed), f, **given)


def bucketing(base, x, f, size=None, seed=0):
    n = len(x)
    size = size or (n if f == 0 else (n - 1) // (2 * f))
    order = np.random.default_rng(seed).permutation(n)
    buckets = [x[order[i : i + size]].mean(axis=0) for i in range(0, n, size)]
    return base(np.array(buckets), f)


def arc(base, x, f, **given):
    lengths, w = norm(x, axis=1), uniform(x, given.get("weights"))
    room = 2 * f / len(x) * (1 - f / len(x)) * w.sum()
    for i in nearest(-lengths, len(x)):
        room -= w[i]
        if room < -1e-12 * w.sum():
            return base(clip(x, lengths[i]), f, **given)


def clip(x, radius):
    return np.array([row * min(1.0, radius / max(norm(row), 1e-300)) for row in x])


def clipping(base, x, f, radius, **given):
    return base(clip(x, radius), f, **given)


def normbound(base, x, f, quantile=0.5, **given):
    lengths, w = norm(x, axis=1), uniform(x, given.get("weights"))
    upto = 0.0
    for i in nearest(lengths, len(x)):
        upto += w[i] / w.sum()
        if upto >= quantile - 1e-12:
            return base(clip(x, lengths[i]), f, **given)


def medoid(x, f, weights=None):
    w = uniform(x, weights)
    sums = [
        w @ row if wi > 0 else np.inf for row, wi in zip(distances(x), w, strict=True)
    ]
    return x[int(np.argmin(sums))]


def hierarchical(within, x, f, across=None, size=3, seed=0, failure=1e-6):
    n = len(x)
    m = max(1, n // size)
    if m == 1:
        return within(x, f)
    k, lost = burden(n, f, m, failure)
    order = np.random.default_rng(seed).permutation(n)
    sizes = [n // m + (j < n % m) for j in range(m)]
    ends = np.cumsum(sizes)
    found = [
        within(x[sorted(order[e - s : e])], k) for s, e in zip(sizes, ends, strict=True)
    ]
    return (across or within)(np.array(found), lost)


def burden(n, b, m, failure):
    """Byzantine rows for each group, lost groups: the pair with the widest margins."""
    s, most = n // m, -(-n // m)
    allowed = [
        (k, lost)
        for k in range(s)
        for lost in range(m)
        if 2 * k < s and 2 * lost < m and loss(n, b, m, most, k, lost) <= failure
    ]
    return max(allowed, key=lambda pair: (s - 2 * pair[0]) * (m - 2 * pair[1]))


def loss(n, b, m, s, k, lost):
    """Chernoff's bound: the least of E[exp(t X)] / exp(t (F + 1)) over t, by search."""
    if (k + 1) * (lost + 1) > b:
        return 0.0
    p = sum(comb(b, i) * comb(n - b, s - i) for i in range(k + 1, s + 1)) / comb(n, s)
    t = np.linspace(0, 40, 40_001)
    return np.exp(m * np.log1p(p * np.expm1(t)) - t * (lost + 1)).min()
