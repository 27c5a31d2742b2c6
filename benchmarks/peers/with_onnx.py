"""ONNX Runtime's and OpenVINO's calls, of the same ONNX models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.call import Call, one, outputs, stepped
from benchmarks.problems import WEIGHTS, Arrays, Matmul, Recurrent


class ONNXRuntime:
    """ONNX models. Its threads do not spin: they would take the cores from whoever is timed next."""

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
        return one("c", lambda: run(inputs)[0])

    def matmul_packed(self, problem: Matmul) -> Call:
        run, inputs = self._session(_onnx_matmul(problem)), {"a": problem.data[0]}
        return one("c", lambda: run(inputs)[0])

    def recurrent_inference(self, problem: Recurrent) -> Call:
        run, inputs = self._session(_onnx_layers(problem, problem.T)), {"x": problem.x}

        def answer() -> Arrays:
            y, *ends = map(np.array, run(inputs))
            states = [np.concatenate(ends[k:k + problem.layers]) for k in range(0, len(ends), problem.layers)]
            return outputs(y.reshape(*y.shape[:1], problem.B, -1), states)
        return Call(lambda: run(inputs), answer)

    stacked_inference = ragged_inference = recurrent_inference

    def recurrent_step(self, problem: Recurrent) -> Call:
        run, x = self._session(_onnx_layers(problem, 1, stateful=True)), problem.x[:, None]
        state = {name: np.zeros((1, problem.B, problem.H), np.float32) for name in _states(problem)}

        def step(t: int) -> np.ndarray:
            _, *ends = run({"x": x[t], **state})
            self._feed(state, ends)
            return ends[0][0]
        return stepped(problem, step)

    @staticmethod
    def _feed(state: Arrays, ends: list[np.ndarray]) -> None:
        state.update(zip(state, ends, strict=True))


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

    @staticmethod
    def _feed(state: Arrays, ends: list[np.ndarray]) -> None:
        for array, end in zip(state.values(), ends, strict=True):
            array[...] = end  # which is the request's own memory


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


def _states(problem: Recurrent) -> tuple[str, ...]:
    return ("h_0", "c_0") if problem.cell == "LSTM" else ("h_0",)


def _onnx_layers(problem: Recurrent, T: int, *, stateful: bool = False) -> bytes:
    """Input x (T, B, I), and with `stateful` h_0 and c_0; outputs y, then h of each layer (D, B, H), then c."""
    from onnx import helper

    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[problem.cell]  # ONNX has i, o, f, g and z, r, n
    D, states = problem.D, _states(problem) if stateful else ()
    kind: dict[str, Any] = {"GRU": {"linear_before_reset": 1}, "RNN": {"activations": ["Tanh"] * D}}.get(problem.cell, {})
    kind |= {"hidden_size": problem.H, "direction": "bidirectional" if D == 2 else "forward"}
    constants = {} if problem.lengths is None else {"lengths": problem.lengths.astype(np.int32)}
    nodes, y = [], "x"
    for layer, suffixes in enumerate(problem.suffixes):
        w, r, b_ih, b_hh = (np.stack([_reordered(problem.weights[name + suffix], order) for suffix in suffixes]) for name in WEIGHTS)
        constants |= {f"w{layer}": w, f"r{layer}": r, f"b{layer}": np.concatenate([b_ih, b_hh], axis=1)}
        given = [y, f"w{layer}", f"r{layer}", f"b{layer}", "lengths" if problem.ragged else "", *states]
        y, ends = f"y{layer}", [f"{name}{layer}" for name in _states(problem)]
        nodes.append(helper.make_node(problem.cell, given if given[-1] else given[:-1], [y, *ends], **kind))
        if problem.form == "stacked":  # (T, D, B, H) -> (T, B, D H), what the next layer reads
            constants["joined"] = np.array([0, 0, -1])
            nodes += [helper.make_node("Transpose", [y], [f"t{layer}"], perm=[0, 2, 1, 3]),
                      helper.make_node("Reshape", [f"t{layer}", "joined"], [f"j{layer}"])]
            y = f"j{layer}"
    inputs = {"x": (T, problem.B, problem.I)} | dict.fromkeys(states, (1, problem.B, problem.H))
    ends = [f"{name}{layer}" for name in _states(problem) for layer in range(problem.layers)]
    return _onnx_model(nodes, inputs, [y, *ends], constants)


def _reordered(weight: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    blocks = np.split(weight, len(order))
    return np.concatenate([blocks[gate] for gate in order])
