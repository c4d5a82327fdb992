"""Attention whose heads are mixed, as three kernels: forward, gradient of the queries, gradient of keys and values.

With S_j = q_j k_jᵀ (b, g, n, m) per head: L_h = Σ_j before[h, j] S_j, P_h = softmax(L_h), and then either

    TALK: A_h = Σ_j after[h, j] P_j + bias[h],  O_h = A_h V_h   (CaiT)
    else: A_h = P_h - 1 / m,  O_h = A_h V_h, and the sum of A_h² over the plane   (ResTv1)

A program holds one block of queries (or keys) of one image for all its heads, as a tuple of planes, one a head, in
registers; scores are computed again instead of stored. So memory sees q, k, v and the answer, and one float32 a query
and head (its log-sum-exp). Rows and columns outside are zero: no gradient reaches them.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from anyres.ops.triton.tiles import product, put, tile

LIFT = tl.constexpr(256.0)
"""P - 1 / m is small where attention is even: it is lifted so far before fp16 takes it, and the answer set down."""


@triton.jit
def mixed(planes, weight, h: tl.constexpr, G: tl.constexpr):
    """Σ_j weight[h, j] planes[j]."""
    total = planes[0] * tl.load(weight + h * G)
    for j in tl.static_range(1, G):
        total += planes[j] * tl.load(weight + h * G + j)
    return total


@triton.jit
def unmixed(planes, weight, j: tl.constexpr, G: tl.constexpr):
    """Σ_h weight[h, j] planes[h], by which gradients come back through ``mixed``."""
    total = planes[0] * tl.load(weight + j)
    for h in tl.static_range(1, G):
        total += planes[h] * tl.load(weight + h * G + j)
    return total


@triton.jit
def products(
    left, left_g, left_n, row, n, right, right_g, right_m, column, m,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """left_j right_jᵀ for each head j: g planes (BN, BM) in float32."""
    channel = tl.arange(0, DP)
    planes = ()
    for j in tl.static_range(G):
        a = tile(left + j * left_g, row, n, left_n, channel, D)
        b = tile(right + j * right_g, column, m, right_m, channel, D)
        planes = planes + (product(a, tl.trans(b), tl.zeros((BN, BM), tl.float32)),)
    return planes


@triton.jit
def per_head(pointer, row, n, other, G: tl.constexpr):
    """Of (g, n) numbers the rows' ones, a vector per head; ``other`` outside (of log-sum-exps inf, so that P is 0)."""
    vectors = ()
    for h in tl.static_range(G):
        vectors = vectors + (tl.load(pointer + h * n + row, mask=row < n, other=other),)
    return vectors


@triton.jit
def softmaxed(planes, before, lse, column, m, G: tl.constexpr):
    """P_h for each head, from S and its rows' log-sum-exp; zero beyond the last key."""
    shares = ()
    for h in tl.static_range(G):
        share = tl.exp(mixed(planes, before, h, G) - lse[h][:, None])
        shares = shares + (tl.where((column < m)[None, :], share, 0.0),)
    return shares


@triton.jit
def forward(
    query, key, value, before, after, bias, out, lse, squares,
    q_b, q_g, q_n, k_b, k_g, k_m, v_b, v_g, v_m, n, m,
    TALK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """out (b, n, g, d); lse (b, g, n); squares (b, blocks, g), which TALK leaves alone."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, channel = block * BN + tl.arange(0, BN), tl.arange(0, DP)
    query, key, value = query + image * q_b, key + image * k_b, value + image * v_b
    out, lse = out + image * n * G * D, lse + image * G * n

    top, total, answer, spread = (), (), (), ()
    for _ in tl.static_range(G):
        top = top + (tl.full((BN,), float("-inf"), tl.float32),)
        total = total + (tl.zeros((BN,), tl.float32),)
        answer = answer + (tl.zeros((BN, DP), tl.float32),)
        spread = spread + (tl.zeros((BN,), tl.float32),)

    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        planes = products(query, q_g, q_n, row, n, key, k_g, k_m, column, m, G, D, DP, BN, BM)
        tops, totals = (), ()
        for h in tl.static_range(G):
            score = tl.where((column < m)[None, :], mixed(planes, before, h, G), float("-inf"))
            highest = tl.maximum(top[h], tl.max(score, 1))
            tops = tops + (highest,)
            grown = total[h] * tl.exp(top[h] - highest) + tl.sum(tl.exp(score - highest[:, None]), 1)
            totals = totals + (grown,)
        top, total = tops, totals
    level = ()
    for h in tl.static_range(G):
        level = level + (top[h] + tl.log(total[h]),)
        tl.store(lse + h * n + row, level[h], mask=row < n)

    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        planes = products(query, q_g, q_n, row, n, key, k_g, k_m, column, m, G, D, DP, BN, BM)
        shares = softmaxed(planes, before, level, column, m, G)
        answers, spreads = (), ()
        for h in tl.static_range(G):
            v = tile(value + h * v_g, column, m, v_m, channel, D)
            if TALK:
                share = mixed(shares, after, h, G) + tl.load(bias + h)
                spreads = spreads + (spread[h],)
            else:
                inside = (row < n)[:, None] & (column < m)[None, :]
                off = tl.where(inside, shares[h] - 1.0 / m, 0.0)
                spreads = spreads + (spread[h] + tl.sum(off * off, 1),)
                share = off * LIFT
            answers = answers + (product(share.to(v.dtype), v, answer[h]),)
        answer, spread = answers, spreads
    for h in tl.static_range(G):
        put(out + h * D, row, n, G * D, channel, D, answer[h] if TALK else answer[h] / LIFT)
        if not TALK:
            tl.store(squares + (image * tl.num_programs(0) + block) * G + h, tl.sum(spread[h], 0))


@triton.jit
def gradient_of_share(shares, answers, after, rate, factor, h: tl.constexpr, TALK: tl.constexpr, G: tl.constexpr):
    """∂P_h from ∂O Vᵀ; without TALK by the norm, O = rate (P - 1 / m) V with a rate that P decides."""
    if TALK:
        return unmixed(answers, after, h, G)
    return tl.load(rate + h) * answers[h] + tl.load(factor + h) * shares[h]


@triton.jit
def gradient_of_scores(shares, answers, after, rate, factor, delta, TALK: tl.constexpr, G: tl.constexpr):
    """∂L_h for each head: P_h (∂P_h - delta_h), delta_h the mean of ∂P_h under P_h."""
    gradients = ()
    for h in tl.static_range(G):
        wanted = gradient_of_share(shares, answers, after, rate, factor, h, TALK, G)
        gradients = gradients + (shares[h] * (wanted - delta[h][:, None]),)
    return gradients


@triton.jit
def backward_queries(
    grad, query, key, value, before, after, rate, factor, lse, delta, grad_query, grad_before, grad_after,
    q_b, q_g, q_n, k_b, k_g, k_m, v_b, v_g, v_m, n, m,
    TALK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta (b, g, n), grad_query (b, n, g, d), and this block's share (b, blocks, g, g) of both mixings' gradients.

    ``grad`` is ∂O (b, n, g, d); ``rate`` and ``factor`` (b, g) are read without TALK.
    """
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, channel = block * BN + tl.arange(0, BN), tl.arange(0, DP)
    query, key, value = query + image * q_b, key + image * k_b, value + image * v_b
    grad, grad_query = grad + image * n * G * D, grad_query + image * n * G * D
    delta, level = delta + image * G * n, per_head(lse + image * G * n, row, n, float("inf"), G)
    rate, factor = rate + image * G, factor + image * G
    part = (image * tl.num_programs(0) + block) * G * G

    sums = ()  # over the keys: TALK of ∂A_h P_j for each h, j, else of ∂P_h P_h
    for _ in tl.static_range(G * G if TALK else G):
        sums = sums + (tl.zeros((BN,), tl.float32),)
    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        planes = products(query, q_g, q_n, row, n, key, k_g, k_m, column, m, G, D, DP, BN, BM)
        shares = softmaxed(planes, before, level, column, m, G)
        answers = products(grad, D, G * D, row, n, value, v_g, v_m, column, m, G, D, DP, BN, BM)
        grown = ()
        for h in tl.static_range(G):
            if TALK:
                for j in tl.static_range(G):
                    grown = grown + (sums[h * G + j] + tl.sum(answers[h] * shares[j], 1),)
            else:
                wanted = gradient_of_share(shares, answers, after, rate, factor, h, TALK, G)
                grown = grown + (sums[h] + tl.sum(wanted * shares[h], 1),)
        sums = grown
    means = ()
    for j in tl.static_range(G):
        if TALK:
            mean = tl.zeros((BN,), tl.float32)
            for h in tl.static_range(G):
                mean += sums[h * G + j] * tl.load(after + h * G + j)
                tl.store(grad_after + part + h * G + j, tl.sum(sums[h * G + j], 0))
        else:
            mean = sums[j]
        means = means + (mean,)
        tl.store(delta + j * n + row, mean, mask=row < n)

    answer, talks = (), ()
    for _ in tl.static_range(G):
        answer = answer + (tl.zeros((BN, DP), tl.float32),)
    for _ in tl.static_range(G * G):
        talks = talks + (tl.zeros((BN,), tl.float32),)
    for start in range(0, m, BM):
        column = start + tl.arange(0, BM)
        planes = products(query, q_g, q_n, row, n, key, k_g, k_m, column, m, G, D, DP, BN, BM)
        shares = softmaxed(planes, before, level, column, m, G)
        answers = products(grad, D, G * D, row, n, value, v_g, v_m, column, m, G, D, DP, BN, BM)
        scores = gradient_of_scores(shares, answers, after, rate, factor, means, TALK, G)
        grown, more = (), ()
        for h in tl.static_range(G):
            for j in tl.static_range(G):
                grown = grown + (talks[h * G + j] + tl.sum(scores[h] * planes[j], 1),)
            k = tile(key + h * k_g, column, m, k_m, channel, D)
            more = more + (product(unmixed(scores, before, h, G).to(k.dtype), k, answer[h]),)
        talks, answer = grown, more
    for h in tl.static_range(G):
        put(grad_query + h * D, row, n, G * D, channel, D, answer[h])
        for j in tl.static_range(G):
            tl.store(grad_before + part + h * G + j, tl.sum(talks[h * G + j], 0))


@triton.jit
def backward_keys(
    grad, query, key, value, before, after, bias, rate, factor, lse, delta, grad_key, grad_value,
    q_b, q_g, q_n, k_b, k_g, k_m, v_b, v_g, v_m, n, m,
    TALK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """grad_key and grad_value (b, m, g, d), for a block of keys over all queries."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column, channel = block * BM + tl.arange(0, BM), tl.arange(0, DP)
    query, key, value = query + image * q_b, key + image * k_b, value + image * v_b
    grad, lse, delta = grad + image * n * G * D, lse + image * G * n, delta + image * G * n
    grad_key, grad_value = grad_key + image * m * G * D, grad_value + image * m * G * D
    rate, factor = rate + image * G, factor + image * G

    keys, values = (), ()
    for _ in tl.static_range(G):
        keys = keys + (tl.zeros((BM, DP), tl.float32),)
        values = values + (tl.zeros((BM, DP), tl.float32),)
    for start in range(0, n, BN):
        row = start + tl.arange(0, BN)
        planes = products(query, q_g, q_n, row, n, key, k_g, k_m, column, m, G, D, DP, BN, BM)
        shares = softmaxed(planes, before, per_head(lse, row, n, float("inf"), G), column, m, G)
        answers = products(grad, D, G * D, row, n, value, v_g, v_m, column, m, G, D, DP, BN, BM)
        scores = gradient_of_scores(shares, answers, after, rate, factor, per_head(delta, row, n, 0.0, G), TALK, G)
        more_keys, more_values = (), ()
        for h in tl.static_range(G):
            q = tile(query + h * q_g, row, n, q_n, channel, D)
            o = tile(grad + h * D, row, n, G * D, channel, D)
            share = mixed(shares, after, h, G) + tl.load(bias + h) if TALK else (shares[h] - 1.0 / m) * LIFT
            more_values = more_values + (product(tl.trans(share.to(o.dtype)), o, values[h]),)
            score = unmixed(scores, before, h, G).to(q.dtype)
            more_keys = more_keys + (product(tl.trans(score), q, keys[h]),)
        keys, values = more_keys, more_values
    for h in tl.static_range(G):
        put(grad_key + h * D, column, m, G * D, channel, D, keys[h])
        put(
            grad_value + h * D,
            column,
            m,
            G * D,
            channel,
            D,
            values[h] if TALK else values[h] * (tl.load(rate + h) / LIFT),
        )
