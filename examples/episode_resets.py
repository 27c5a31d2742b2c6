"""Reinforcement learning with memory: a policy that acts through a stream and learns with a mask of resets.

The corridor (a small T-maze; Bakker 2001): a sign at the entrance says left or right, and only at the far end, some steps later, the
agent has to choose. Many corridors run side by side, each as long as it likes, so episodes begin and end anywhere in a rollout. `reset`
marks the steps at which a new one begins: there the layer starts from zeros, and no gradient crosses. Policy gradient (Williams 1992).

    python examples/episode_resets.py
"""

import argparse
import os

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
AGENTS, ROLLOUT, SHORTEST, LONGEST = 32, 40, 5, 12


class Corridors:
    """One for each agent. It sees (the sign, at the entrance only; whether this is the end), and is told whether it is at an entrance."""

    def __init__(self, rng):
        self.rng = rng
        self.place, self.length, self.sign = (np.zeros(AGENTS, int) for _ in range(3))
        self._enter(np.ones(AGENTS, bool))

    def _enter(self, rows):
        self.place[rows] = 0
        self.length[rows] = self.rng.integers(SHORTEST, LONGEST, rows.sum())
        self.sign[rows] = self.rng.integers(0, 2, rows.sum())

    def look(self):
        first, last = self.place == 0, self.place == self.length
        return np.stack([first * (2.0 * self.sign - 1), last], axis=1).astype(np.float32), first

    def act(self, actions):
        """1 for the right choice at the end, -1 for the wrong one, 0 before it."""
        last = self.place == self.length
        rewards = last * np.where(actions == self.sign, 1.0, -1.0)
        self.place += 1
        self._enter(last)
        return rewards.astype(np.float32)


def rollout(corridors, stream, head, rng):
    """ROLLOUT steps of all agents: what they saw, where episodes began, what they did and got."""
    steps = []
    for _ in range(ROLLOUT):
        seen, first = corridors.look()
        stream.reset(rows=first)
        chances = fs.functional.softmax(head(stream.step(seen)))
        actions = (rng.random(AGENTS) < chances[:, 1]).astype(int)
        steps.append((seen, first, actions, corridors.act(actions)))
    return (np.stack(each) for each in zip(*steps, strict=True))


def train(updates, report):
    rng = np.random.default_rng(0)
    gru, head = fs.nn.GRU(2, 32, rng=1), fs.nn.Linear(32, 2, rng=2)
    parameters = [*gru.parameters(), *head.parameters()]
    adam, corridors, stream = fs.optim.Adam(parameters, lr=5e-3), Corridors(rng), gru.stream(batch_size=AGENTS)
    for update in range(1, updates + 1):
        state = stream.state  # where this rollout begins, in the midst of episodes
        seen, first, actions, rewards = rollout(corridors, stream, head, rng)
        y, _ = gru(fs.Tensor(seen), state, reset=first)  # the same states as the stream's, and now recorded
        chosen = fs.functional.log_softmax(head(y)) * np.eye(2, dtype=np.float32)[actions]
        ends = rewards != 0  # only there does an action change anything
        loss = -(chosen.sum(axis=-1) * rewards).sum() / max(1, int(ends.sum()))
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(parameters, 1.0)
        adam.step()
        stream.refresh()  # the policy has changed; the states go on
        if update % report == 0:
            print(f"update {update:4}: {np.mean(rewards[ends] > 0):4.0%} of {ends.sum()} choices were right", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2 if QUICK else 200, help="updates of the policy (default %(default)s)")
    options = parser.parse_args()
    train(options.steps, report=max(1, options.steps // 8))


if __name__ == "__main__":
    main()
