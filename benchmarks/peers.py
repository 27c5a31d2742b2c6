"""fastseq and what a user would pick instead, each as callables that solve the same problems.

One class for each library, imported when it is made; a method for each task that the library can do takes the problem and gives a
`Call`. All run in this process with the same number of threads. Nothing but the call itself is timed: data is in the library's own
type, models are built and compiled, weights that stay the same are prepared.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.problems import LSTM, Arrays, CrossEntropy, Matmul, Problem


class Call(NamedTuple):
    """A problem, ready to be solved again and again."""

    run: Callable[[], Any]  # what is timed
    answer: Callable[[], Arrays]  # solves it once and names the arrays, as `Problem.answer` does


class FastSeq:
    """The library that this is all about."""

    distribution, module = "fastseq-kernels", "fastseq"

    def __init__(self, threads: int) -> None:
        import fastseq

        self.fs = fastseq
        fastseq.set_num_threads(threads)

    def matmul(self, problem: Matmul) -> Call:
        a, b = problem.data
        return _one("c", lambda: self.fs.functional.matmul(a, b))

    def matmul_packed(self, problem: Matmul) -> Call:
        a, b = problem.data
        packed = self.fs.functional.pack(b)
        return _one("c", lambda: self.fs.functional.matmul(a, packed))

    def _lstm(self, problem: LSTM) -> Any:
        layer = self.fs.nn.LSTM(problem.I, problem.H)
        layer.load_state_dict(problem.weights)
        return layer

    def lstm_inference(self, problem: LSTM) -> Call:
        layer, x = self._lstm(problem).eval(), problem.x

        def answer() -> Arrays:
            y, (h, c) = layer(x)
            return {"y": y, "h": h[0], "c": c[0]}
        return Call(lambda: layer(x), answer)

    def lstm_training(self, problem: LSTM) -> Call:
        layer, x, dy = self._lstm(problem), problem.x, problem.dy

        def run() -> Any:
            layer.zero_grad()
            xt = self.fs.Tensor(x, requires_grad=True)
            y, _ = layer(xt)
            y.backward(dy)
            return xt, y

        def answer() -> Arrays:
            xt, y = run()
            return {"y": y.data, "dx": xt.grad} | {name: p.grad for name, p in layer.named_parameters()}
        return Call(run, answer)

    def lstm_step(self, problem: LSTM) -> Call:
        stream, x = self._lstm(problem).stream(batch_size=problem.B), problem.x
        return _stepped(problem, lambda t: stream.step(x[t]))

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data
        return _one("loss", lambda: self.fs.functional.cross_entropy(logits, targets))

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data

        def run() -> Any:
            z = self.fs.Tensor(logits, requires_grad=True)
            loss = self.fs.functional.cross_entropy(z, targets)
            loss.backward()
            return loss, z

        def answer() -> Arrays:
            loss, z = run()
            return {"loss": loss.data, "dlogits": z.grad}
        return Call(run, answer)


class NumPy:
    """The equations as one writes them in NumPy with care; its number of threads is the process's."""

    distribution = module = "numpy"

    def __init__(self, threads: int) -> None:
        del threads

    def matmul(self, problem: Matmul) -> Call:
        a, b = problem.data
        return _one("c", lambda: a @ b)

    matmul_packed = matmul

    def _cell(self, problem: LSTM) -> tuple[Any, Any]:
        """The input product, and a step from it."""
        H = problem.H
        w_ih, w_hh, b_ih, b_hh = problem.weights.values()
        w_ih, w_hh, bias = w_ih.T.copy(), w_hh.T.copy(), b_ih + b_hh

        def step(z: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            a = z + h @ w_hh
            s = 1 / (1 + np.exp(-a))
            c = s[:, H:2 * H] * c + s[:, :H] * np.tanh(a[:, 2 * H:3 * H])
            return s[:, 3 * H:] * np.tanh(c), c
        return lambda x: x @ w_ih + bias, step

    def lstm_inference(self, problem: LSTM) -> Call:
        project, step = self._cell(problem)

        def run() -> tuple[np.ndarray, ...]:
            z = project(problem.x)
            h = c = np.zeros((problem.B, problem.H), np.float32)
            y = np.empty((problem.T, problem.B, problem.H), np.float32)
            for t in range(problem.T):
                y[t], c = h, c = step(z[t], h, c)
            return y, h, c
        return Call(run, lambda: dict(zip("yhc", run(), strict=True)))

    def lstm_step(self, problem: LSTM) -> Call:
        project, step = self._cell(problem)
        x, state = problem.x, (np.zeros((problem.B, problem.H), np.float32),) * 2

        def run(t: int) -> np.ndarray:
            nonlocal state
            state = step(project(x[t]), *state)
            return state[0]
        return _stepped(problem, run)

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data
        rows = np.arange(problem.N)

        def run() -> np.floating:
            z = logits - logits.max(axis=1, keepdims=True)
            return (np.log(np.exp(z).sum(axis=1)) - z[rows, targets]).mean()
        return _one("loss", run)

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        logits, targets = problem.data
        rows = np.arange(problem.N)

        def run() -> tuple[np.floating, np.ndarray]:
            z = logits - logits.max(axis=1, keepdims=True)
            e = np.exp(z)
            s = e.sum(axis=1)
            loss = (np.log(s) - z[rows, targets]).mean()
            e /= s[:, None]
            e[rows, targets] -= 1
            e /= problem.N
            return loss, e
        return Call(run, lambda: dict(zip(("loss", "dlogits"), map(np.asarray, run()), strict=True)))


class PyTorch:
    """Its own layers and functions; inference under `inference_mode`."""

    distribution = module = "torch"

    def __init__(self, threads: int) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(threads)

    def _inference(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        mode = self.torch.inference_mode

        def run() -> Any:
            with mode():
                return function(*arguments)
        return run

    def matmul(self, problem: Matmul) -> Call:
        return _one("c", self._inference(self.torch.matmul, *map(self.torch.from_numpy, problem.data)))

    matmul_packed = matmul

    def _lstm(self, problem: LSTM, kind: str, suffix: str = "_l0") -> Any:
        layer = getattr(self.torch.nn, kind)(problem.I, problem.H)
        layer.load_state_dict({name.removesuffix("_l0") + suffix: self.torch.from_numpy(w) for name, w in problem.weights.items()})
        return layer

    def lstm_inference(self, problem: LSTM) -> Call:
        run = self._inference(self._lstm(problem, "LSTM").eval(), self.torch.from_numpy(problem.x))

        def answer() -> Arrays:
            y, (h, c) = run()
            return {"y": y.numpy(), "h": h[0].numpy(), "c": c[0].numpy()}
        return Call(run, answer)

    def lstm_training(self, problem: LSTM) -> Call:
        layer, dy = self._lstm(problem, "LSTM"), self.torch.from_numpy(problem.dy)
        x = self.torch.from_numpy(problem.x).requires_grad_()

        def run() -> Any:
            layer.zero_grad()
            x.grad = None
            y, _ = layer(x)
            y.backward(dy)
            return y

        def answer() -> Arrays:
            y = run()
            return {"y": y.detach().numpy(), "dx": x.grad.numpy()} | {name: p.grad.numpy() for name, p in layer.named_parameters()}
        return Call(run, answer)

    def lstm_step(self, problem: LSTM) -> Call:
        cell, x = self._lstm(problem, "LSTMCell", "").eval(), self.torch.from_numpy(problem.x)
        state = (self.torch.zeros(problem.B, problem.H),) * 2
        mode = self.torch.inference_mode

        def run(t: int) -> Any:
            nonlocal state
            with mode():
                state = cell(x[t], state)
            return state[0]
        return _stepped(problem, run)

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        return _one("loss", self._inference(self.torch.nn.functional.cross_entropy, *map(self.torch.from_numpy, problem.data)))

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        logits, targets = map(self.torch.from_numpy, problem.data)
        logits.requires_grad_()

        def run() -> Any:
            logits.grad = None
            loss = self.torch.nn.functional.cross_entropy(logits, targets)
            loss.backward()
            return loss
        return Call(run, lambda: {"loss": run().detach().numpy(), "dlogits": logits.grad.numpy()})


class ONNXRuntime:
    """One-node ONNX models. Its threads do not spin: they would take the cores from whoever is timed next."""

    distribution = module = "onnxruntime"
    needs = ("onnx",)

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def _session(self, model: bytes) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)

    def matmul(self, problem: Matmul) -> Call:
        run, inputs = self._session(_onnx_matmul(problem)), dict(zip("ab", problem.data, strict=True))
        return _one("c", lambda: run(inputs)[0])

    def matmul_packed(self, problem: Matmul) -> Call:
        run, inputs = self._session(_onnx_matmul(problem)), {"a": problem.data[0]}
        return _one("c", lambda: run(inputs)[0])

    def lstm_inference(self, problem: LSTM) -> Call:
        run, inputs = self._session(_onnx_lstm(problem, problem.T)), {"x": problem.x} | _zero_state(problem)
        return Call(lambda: run(inputs), lambda: _onnx_answer(run(inputs)))

    def lstm_step(self, problem: LSTM) -> Call:
        run, state = self._session(_onnx_lstm(problem, 1)), _zero_state(problem)
        x = problem.x[:, None]

        def step(t: int) -> np.ndarray:
            nonlocal state
            _, h, c = run({"x": x[t], **state})
            state = {"h_0": h, "c_0": c}
            return h[0]
        return _stepped(problem, step)


class OpenVINO(ONNXRuntime):
    """The same ONNX models, compiled for latency in float32."""

    distribution = module = "openvino"

    def _session(self, model: bytes) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", {
            "INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
        request, outputs = compiled.create_infer_request(), compiled.outputs

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            found = request.infer(inputs, share_inputs=True, share_outputs=True)
            return [found[output] for output in outputs]
        return run

    def lstm_step(self, problem: LSTM) -> Call:
        run, state = self._session(_onnx_lstm(problem, 1)), _zero_state(problem)
        x = problem.x[:, None]

        def step(t: int) -> np.ndarray:
            _, h, c = run({"x": x[t], **state})
            state["h_0"][...], state["c_0"][...] = h, c  # the outputs are the request's own memory
            return h[0]
        return _stepped(problem, step)


class JAX:
    """Compiled functions; the LSTM is a `lax.scan` after one product for all inputs."""

    distribution = module = "jax"

    def __init__(self, threads: int) -> None:
        import jax

        del threads  # as many as the process has processors
        jax.config.update("jax_platforms", "cpu")
        self.jax, self.jnp = jax, jax.numpy

    def _compiled(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        compiled, block = self.jax.jit(function), self.jax.block_until_ready
        arguments = self.jax.tree.map(self.jnp.asarray, arguments)
        return lambda: block(compiled(*arguments))

    def matmul(self, problem: Matmul) -> Call:
        return _one("c", self._compiled(self.jnp.matmul, *problem.data))

    matmul_packed = matmul

    def _step(self, H: int) -> Callable[..., Any]:
        sigmoid, tanh = self.jax.nn.sigmoid, self.jnp.tanh

        def step(w_hh: Any, state: Any, z: Any) -> Any:
            h, c = state
            a = z + h @ w_hh.T
            c = sigmoid(a[:, H:2 * H]) * c + sigmoid(a[:, :H]) * tanh(a[:, 2 * H:3 * H])
            h = sigmoid(a[:, 3 * H:]) * tanh(c)
            return (h, c), h
        return step

    def _forward(self, problem: LSTM) -> Callable[..., Any]:
        step = self._step(problem.H)

        def forward(w: Any, x: Any) -> Any:
            z = x @ w["weight_ih_l0"].T + (w["bias_ih_l0"] + w["bias_hh_l0"])
            zero = self.jnp.zeros((problem.B, problem.H), x.dtype)
            (h, c), y = self.jax.lax.scan(lambda state, z_t: step(w["weight_hh_l0"], state, z_t), (zero, zero), z)
            return y, h, c
        return forward

    def lstm_inference(self, problem: LSTM) -> Call:
        run = self._compiled(self._forward(problem), problem.weights, problem.x)
        return Call(run, lambda: dict(zip("yhc", map(np.asarray, run()), strict=True)))

    def lstm_training(self, problem: LSTM) -> Call:
        forward = self._forward(problem)

        def both(w: Any, x: Any, dy: Any) -> Any:
            y, back = self.jax.vjp(lambda w, x: forward(w, x)[0], w, x)
            return y, *back(dy)
        run = self._compiled(both, problem.weights, problem.x, problem.dy)

        def answer() -> Arrays:
            y, dw, dx = run()
            return {name: np.asarray(a) for name, a in {"y": y, "dx": dx, **dw}.items()}
        return Call(run, answer)

    def lstm_step(self, problem: LSTM) -> Call:
        step = self._step(problem.H)

        @self.jax.jit
        def whole(w: Any, state: Any, x: Any) -> Any:
            return step(w["weight_hh_l0"], state, x @ w["weight_ih_l0"].T + (w["bias_ih_l0"] + w["bias_hh_l0"]))
        w, x = self.jax.tree.map(self.jnp.asarray, (problem.weights, list(problem.x)))
        state = (self.jnp.zeros((problem.B, problem.H), np.float32),) * 2

        def run(t: int) -> Any:
            nonlocal state
            state, y = whole(w, state, x[t])
            return y.block_until_ready()
        return _stepped(problem, run)

    def _loss(self, logits: Any, targets: Any) -> Any:
        picked = self.jnp.take_along_axis(self.jax.nn.log_softmax(logits), targets[:, None], 1)
        return -picked.mean()

    def cross_entropy_inference(self, problem: CrossEntropy) -> Call:
        return _one("loss", self._compiled(self._loss, *problem.data))

    def cross_entropy_training(self, problem: CrossEntropy) -> Call:
        run = self._compiled(self.jax.value_and_grad(self._loss), *problem.data)
        return Call(run, lambda: dict(zip(("loss", "dlogits"), map(np.asarray, run()), strict=True)))


IMPLEMENTATIONS: dict[str, Any] = {"fastseq": FastSeq, "numpy": NumPy, "torch": PyTorch, "onnxruntime": ONNXRuntime, "openvino": OpenVINO, "jax": JAX}


def installed() -> list[str]:
    """The names of those that can be imported."""
    return [name for name, kind in IMPLEMENTATIONS.items()
            if all(importlib.util.find_spec(module) for module in (kind.module, *getattr(kind, "needs", ())))]


def version(name: str) -> str:
    """The installed version of an implementation."""
    try:
        return importlib.metadata.version(IMPLEMENTATIONS[name].distribution)
    except importlib.metadata.PackageNotFoundError:  # the tree itself, not installed
        return str(getattr(importlib.import_module(IMPLEMENTATIONS[name].module), "__version__", "unknown"))


def can(name: str, problem: Problem) -> bool:
    """Whether the implementation has the problem's task."""
    return hasattr(IMPLEMENTATIONS[name], problem.task)


def _one(name: str, run: Callable[[], Any]) -> Call:
    """A call whose result is the one array of the answer."""
    return Call(run, lambda: {name: np.asarray(run())})


def _stepped(problem: LSTM, step: Callable[[int], Any]) -> Call:
    """A stream: `step(t)` feeds x_t and gives h_t. The answer is its first steps; then x_0 is fed for as long as it is timed."""
    return Call(lambda: step(0), lambda: {"y": np.stack([np.asarray(step(t)).copy() for t in range(problem.T)])})


def _zero_state(problem: LSTM) -> Arrays:
    return {name: np.zeros((1, problem.B, problem.H), np.float32) for name in ("h_0", "c_0")}


def _onnx_answer(outputs: list[np.ndarray]) -> Arrays:
    y, h, c = (np.array(a) for a in outputs)
    return {"y": y[:, 0], "h": h[0], "c": c[0]}


def _onnx_model(nodes: list[Any], inputs: dict[str, tuple[int, ...]], outputs: list[str], constants: Arrays) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    real = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "problem", [helper.make_tensor_value_info(name, real, shape) for name, shape in inputs.items()],
                              [helper.make_tensor_value_info(name, real, None) for name in outputs],
                              [numpy_helper.from_array(array, name) for name, array in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def _onnx_matmul(problem: Matmul) -> bytes:
    from onnx import helper

    a, b = problem.data
    node = helper.make_node("MatMul", ["a", "b"], ["c"])
    inputs = {"a": a.shape} if problem.packed else {"a": a.shape, "b": b.shape}
    return _onnx_model([node], inputs, ["c"], {"b": b} if problem.packed else {})


def _onnx_lstm(problem: LSTM, T: int) -> bytes:
    """Inputs x (T, B, I), h_0, c_0 (1, B, H); outputs y (T, 1, B, H), h, c (1, B, H). ONNX has the gates in the order i, o, f, g."""
    from onnx import helper

    B, I, H = problem.B, problem.I, problem.H
    w_ih, w_hh, b_ih, b_hh = (np.concatenate([np.split(w, 4)[gate] for gate in (0, 3, 1, 2)])[None] for w in problem.weights.values())
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h_0", "c_0"], ["y", "h", "c"], hidden_size=H)
    return _onnx_model([node], {"x": (T, B, I), "h_0": (1, B, H), "c_0": (1, B, H)}, ["y", "h", "c"],
                       {"w": w_ih, "r": w_hh, "b": np.concatenate([b_ih, b_hh], axis=1)})
