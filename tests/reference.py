"""The paper's algorithms once more, one parameter at a time, to compare the package with.

Plain Python floats and explicit loops, written from the algorithm boxes of "Decoupled Weight Decay Regularization"
and from the released code's momentum buffer, in the order in which they print their lines. Nothing here is shared
with the package and nothing here is vectorized, so that a slip in one is not a slip in the other.

Every algorithm takes a start point x, a function gradient(t, x) that gives the gradient of the batch loss at step
t = 1, 2, ... (without any decay), and one multiplier eta and one decay coefficient lambda for each step. It returns
the list of iterates x_1, x_2, ...
"""

import math


def algorithm_1(x, gradient, alpha, beta1, etas, lambdas, decoupled):
    """Algorithm 1: SGD with momentum and L2 regularization (line 6), or SGDW (line 9)."""
    x = list(x)
    m = [0.0 for _ in x]
    iterates = []
    for t in range(1, len(etas) + 1):
        eta, lam = etas[t - 1], lambdas[t - 1]
        gradients = gradient(t, list(x))
        for i in range(len(x)):
            before = x[i]
            g = gradients[i]
            if not decoupled:
                g = g + lam * before
            m[i] = beta1 * m[i] + eta * alpha * g
            x[i] = before - m[i]
            if decoupled:
                x[i] = x[i] - eta * lam * before
        iterates.append(list(x))
    return iterates


def raw_buffer(x, gradient, alpha, beta1, etas, lambdas, decoupled):
    """SGD and SGDW of the released code: the buffer sums raw gradients, eta alpha multiplies it when it is used."""
    x = list(x)
    m = [0.0 for _ in x]
    iterates = []
    for t in range(1, len(etas) + 1):
        eta, lam = etas[t - 1], lambdas[t - 1]
        gradients = gradient(t, list(x))
        for i in range(len(x)):
            before = x[i]
            g = gradients[i]
            if not decoupled:
                g = g + lam * before
            m[i] = g if t == 1 else beta1 * m[i] + g
            x[i] = before - eta * alpha * m[i]
            if decoupled:
                x[i] = x[i] - eta * lam * before
        iterates.append(list(x))
    return iterates


def algorithm_2(x, gradient, alpha, beta1, beta2, eps, etas, lambdas, decoupled):
    """Algorithm 2: Adam with L2 regularization (line 6), or AdamW (line 12)."""
    x = list(x)
    m = [0.0 for _ in x]
    v = [0.0 for _ in x]
    iterates = []
    for t in range(1, len(etas) + 1):
        eta, lam = etas[t - 1], lambdas[t - 1]
        gradients = gradient(t, list(x))
        for i in range(len(x)):
            before = x[i]
            g = gradients[i]
            if not decoupled:
                g = g + lam * before
            m[i] = beta1 * m[i] + (1.0 - beta1) * g
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g
            m_hat = m[i] / (1.0 - beta1**t)
            v_hat = v[i] / (1.0 - beta2**t)
            step = alpha * m_hat / (math.sqrt(v_hat) + eps)
            if decoupled:
                step = step + lam * before
            x[i] = before - eta * step
        iterates.append(list(x))
    return iterates


def cosine_with_restarts(steps, first, growth):
    """Multiplier and cycle length for each of `steps` updates: cosine from 1 towards 0, cycles growing by `growth`.

    The counter of the current cycle goes 0, 1, ..., length - 1 and starts again (SGDR, eq. 5, with eta from 1 to 0).
    """
    etas, lengths = [], []
    done, length = 0, first
    for _ in range(steps):
        etas.append(0.5 + 0.5 * math.cos(math.pi * done / length))
        lengths.append(length)
        done = done + 1
        if done == length:
            done, length = 0, length * growth
    return etas, lengths


def normalized_decay(lambda_norm, batch_size, train_size, epochs):
    """lambda = lambda_norm sqrt(b / (B T)), T in epochs of the current cycle (appendix B.1)."""
    return lambda_norm * math.sqrt(batch_size / (train_size * epochs))


def shifted_rows(image, stride):
    """The second path of a Shake-Shake shortcut for one channel, a list of rows: move by one pixel, then subsample.

    The picture moves one pixel to the right and one down, zeros come in at the left and at the top, the last row
    and column fall out; then every `stride`-th row and column stays.
    """
    height, width = len(image), len(image[0])
    moved = [[0.0] * width for _ in range(height)]
    for row in range(1, height):
        for column in range(1, width):
            moved[row][column] = image[row - 1][column - 1]
    return [[moved[row][column] for column in range(0, width, stride)] for row in range(0, height, stride)]
