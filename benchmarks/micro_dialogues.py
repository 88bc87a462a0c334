"""Micro dialogues as tables: every episode with its probability, exact values, the true policy gradient, a sampler.

A :class:`Dialogue` is a solved game of convgym (``convgym.scenarios.exact``) as arrays. A :class:`Spelling` says how
the agent writes an action: a trie of tokens, whose edges are all that can ever be sampled. A :class:`Policy` gives
every edge in every state its log-probability, and the Jacobian of these numbers by the policy's parameters: whatever
is linear in gradients of log-probabilities is then a matrix product.

Axes: S states of the agent's knowledge, N nodes (a state and what is earned and not yet paid), A actions, M messages,
X prefixes of messages, E edges of the trie, P parameters; I batches (iterations), B rows, K turns, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algos.base import Batch
from convgym.errors import UnknownNameError
from convgym.scenarios import ask_or_act, delayed_consent, text_bandit
from convgym.scenarios.exact import PASS, Solution, State
from convgym.seeding import derive_seed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PolicyKind = Literal["tabular", "llama"]
KINDS: tuple[PolicyKind, ...] = ("tabular", "llama")


# The game -------------------------------------------------------------------------------------------------


class Branches(NamedTuple):
    """What can come of an action: chances that sum to 1 (or 0 where the action cannot be taken), padded with 0."""

    chance: Floats  # [..., N, A, b]
    after: Ints  # [..., N, A, b] node; N where the dialogue is over
    reward: Floats  # [..., N, A, b]


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A game of a fixed number of turns.

    Attributes:
        name: Its short name.
        actions: [A], the last one says nothing.
        states: [S] what the agent may know.
        state_of: [N] state of a node. Nodes stand in the order of their turns.
        turns: K, turns of an episode.
        contexts: [C,2] start node and hidden fact: what the episodes of a group share.
        chances: [C] of the contexts.
        law: Branches given the fact, [F,N,A,b]: what a sampler needs.
        moves: Branches as the agent sees them, [N,A,b]: what values need.
    """

    name: str
    actions: tuple[str, ...]
    states: tuple[State, ...]
    state_of: Ints
    turns: int
    contexts: Ints
    chances: Floats
    law: Branches
    moves: Branches

    @property
    def starts(self) -> Floats:
        """[N] chance that an episode begins in a node."""
        return np.asarray(np.bincount(self.contexts[:, 0], self.chances, len(self.state_of)), np.float64)


@dataclass(frozen=True)
class Setting:
    """Which game, and how it pays.

    Attributes:
        name: A key of ``GAMES``.
        dense: Whether a turn's pay comes at once or all of it at the end.
    """

    name: str
    dense: bool


SETTINGS = (Setting("TextBandit", True), Setting("AskOrAct", True), Setting("DelayedConsent", False))
"""The dialogues of the audits: two that pay at once, and one in which the pay comes turns later."""


def _bandit() -> tuple[Solution, tuple[str, ...]]:
    return text_bandit.solved(2, 3), (*text_bandit.ARMS[: text_bandit.COUNTS[1]], PASS)


def _ask_or_act() -> tuple[Solution, tuple[str, ...]]:
    solution = ask_or_act.solved(2, 2)  # two of the three turns: a fourth of the states
    return solution, solution.actions


def _delayed_consent() -> tuple[Solution, tuple[str, ...]]:
    solution = delayed_consent.solved(2, 6)
    return solution, solution.actions


GAMES = {"TextBandit": _bandit, "AskOrAct": _ask_or_act, "DelayedConsent": _delayed_consent}


@cache
def dialogue(setting: Setting, scale: float = 1.0, shift: float = 0.0) -> Dialogue:
    """The tables of a game whose return is ``scale`` times the pay, plus ``shift`` on the last turn.

    Raises:
        UnknownNameError: for a name that is not in ``GAMES``.
    """
    if setting.name not in GAMES:
        raise UnknownNameError.of("micro dialogue", setting.name, GAMES)
    solution, actions = GAMES[setting.name]()
    facts = sorted({fact for belief in solution.beliefs.values() for fact in belief})
    nodes: dict[tuple[State, float], int] = {(start, 0.0): i for i, start in enumerate(solution.starts)}

    def arrive(state: State, due: float, pay: float) -> tuple[tuple[State, float], float]:
        """The next node, and what is paid on the way to it."""
        over, earned = state not in solution.q, round(due + pay, 9)
        paid = earned if setting.dense or over else 0.0
        return (state, 0.0 if setting.dense or over else earned), scale * paid + (shift if over else 0.0)

    for state, due in (order := list(nodes)):  # grows on the way
        for action in actions:
            for branch in solution.moves[state, action]:
                after, _ = arrive(branch.state, due, branch.reward)
                if branch.state in solution.q and after not in nodes:
                    nodes[after] = len(nodes)
                    order.append(after)

    def tables(branches_of: Any, lead: tuple[int, ...]) -> Branches:
        width = max(len(branches) for branches in [*solution.moves.values(), *solution.law.values()])
        shape = (*lead, len(nodes), len(actions), width)
        chance, after, reward = np.zeros(shape), np.full(shape, len(nodes)), np.zeros(shape)
        for (state, due), node in nodes.items():
            for a, action in enumerate(actions):
                for at, branches in branches_of(state, action):
                    for b, branch in enumerate(branches):
                        where = (*at, node, a, b)
                        key, reward[where] = arrive(branch.state, due, branch.reward)
                        chance[where], after[where] = branch.chance, nodes.get(key, len(nodes))
        return Branches(chance, after, reward)

    def by_fact(state: State, action: str) -> list[tuple[tuple[int, ...], Any]]:
        return [((facts.index(f),), solution.law[f, state, action]) for f in solution.beliefs[state]]

    states = tuple(dict.fromkeys(state for state, _ in nodes))
    contexts = {
        (nodes[start, 0.0], facts.index(fact)): chance * belief
        for start, chance in solution.starts.items()
        for fact, belief in solution.beliefs[start].items()
    }
    return Dialogue(
        name=setting.name,
        actions=actions,
        states=states,
        state_of=np.array([states.index(state) for state, _ in nodes]),
        turns=1 + max(int(state[0]) for state in states),
        contexts=np.array(list(contexts)),
        chances=np.array(list(contexts.values())),
        law=tables(by_fact, (len(facts),)),
        moves=tables(lambda state, action: [((), solution.moves[state, action])], ()),
    )


# How an action is written ---------------------------------------------------------------------------------

STOP, FILLER = "<end>", "please"


@dataclass(frozen=True, eq=False)
class Spelling:
    """The messages of an agent as a trie.

    Attributes:
        messages: [M] token strings; none is the beginning of another.
        action_of: [M] index of the action that a message is.
        prefixes: [X] beginnings of messages, shorter ones first; the empty one is first.
        edges: [E] (prefix, token).
        prefix_of: [E] where an edge begins.
        child_of: [E] prefix that it leads to, -1 where it ends the message.
        ends: [E] action of the message that it ends, -1 where it ends none.
        paths: [M,L] edges of a message, -1 behind its end.
        lengths: [M] tokens of a message.
    """

    messages: tuple[tuple[str, ...], ...]
    action_of: Ints
    prefixes: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[int, str], ...]
    prefix_of: Ints
    child_of: Ints
    ends: Ints
    paths: Ints
    lengths: Ints


def spelling(messages: tuple[tuple[str, ...], ...], action_of: tuple[int, ...]) -> Spelling:
    """The trie of some messages."""
    beginnings = {message[:i] for message in messages for i in range(len(message))}
    prefixes = tuple(sorted(beginnings, key=lambda p: (len(p), p)))
    edges = tuple(dict.fromkeys((prefixes.index(m[:i]), m[i]) for m in messages for i in range(len(m))))
    index = {edge: e for e, edge in enumerate(edges)}
    reached = [(*prefixes[x], token) for x, token in edges]
    paths = np.full((len(messages), max(map(len, messages))), -1)
    for row, message in zip(paths, messages):
        row[: len(message)] = [index[prefixes.index(message[:i]), message[i]] for i in range(len(message))]
    return Spelling(
        messages=messages,
        action_of=np.array(action_of),
        prefixes=prefixes,
        edges=edges,
        prefix_of=np.array([x for x, _ in edges]),
        child_of=np.array([prefixes.index(r) if r in beginnings else -1 for r in reached]),
        ends=np.array([-1 if r in beginnings else action_of[messages.index(r)] for r in reached]),
        paths=paths,
        lengths=np.array([len(m) for m in messages]),
    )


def one_token(actions: tuple[str, ...]) -> Spelling:
    """Every action is one token."""
    return spelling(tuple((a,) for a in actions), tuple(range(len(actions))))


def wordy(actions: tuple[str, ...]) -> Spelling:
    """One to four tokens: nothing at all, or a word and as many fillers as the agent likes.

    The last action is to stop at once. Fillers change nothing but the length: four messages are one action.
    """
    silent = len(actions) - 1
    messages: list[tuple[str, ...]] = [(STOP,)]
    action_of = [silent]
    for a, word in enumerate(actions[:-1]):
        endings = [(STOP,), (FILLER, STOP), (FILLER, FILLER, STOP), (FILLER, FILLER, FILLER)]  # the last is cut
        messages += [(word, *ending) for ending in endings]
        action_of += [a] * len(endings)
    return spelling(tuple(messages), tuple(action_of))


# Policies -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Policy:
    """A policy over the edges of a spelling, with its derivative.

    Attributes:
        spelling: How it writes.
        logp: [S,E] log-probability of an edge, given its prefix.
        jacobian: [S,E,P] derivative of ``logp`` by the parameters.
    """

    spelling: Spelling
    logp: Floats
    jacobian: Floats

    @property
    def message_logp(self) -> Floats:
        """[S,M]."""
        paths = self.spelling.paths
        return np.asarray(np.where(paths >= 0, self.logp[:, paths], 0.0).sum(-1))

    @property
    def entropy(self) -> Floats:
        """[S,X] entropy of the next token after a prefix, in nats."""
        found = np.zeros((len(self.logp), len(self.spelling.prefixes)))
        each: Any = (slice(None), self.spelling.prefix_of)
        np.add.at(found, each, -np.exp(self.logp) * self.logp)
        return found

    @property
    def greedy(self) -> Ints:
        """[S] message that takes the most likely token at each step."""
        best = np.full((len(self.logp), len(self.spelling.prefixes)), -np.inf)
        each: Any = (slice(None), self.spelling.prefix_of)
        np.maximum.at(best, each, self.logp)
        taken = self.logp >= best[:, self.spelling.prefix_of]  # [S,E]
        whole = np.where(self.spelling.paths >= 0, taken[:, self.spelling.paths], True).all(-1)  # [S,M]
        return np.asarray(whole.argmax(1))


def tabular(logits: Floats, how: Spelling) -> Policy:
    """Softmax over the edges of every prefix in every state: ``logits`` [S,E], P = S E."""
    states, edges = logits.shape
    scores = torch.tensor(logits, dtype=torch.float64)
    logp = trie_softmax(scores, how)
    same = torch.tensor(how.prefix_of[:, None] == how.prefix_of[None, :])
    block = torch.eye(edges, dtype=torch.float64) - same * logp.exp()[:, None, :]  # [S,E,E]
    jacobian = np.zeros((states, edges, states, edges))
    for s in range(states):
        jacobian[s, :, s, :] = block[s]
    return Policy(how, logp.numpy(), jacobian.reshape(states, edges, states * edges))


def trie_softmax(scores: Tensor, how: Spelling) -> Tensor:
    """Log-probabilities of the edges among those that begin where they do: [...,E] -> [...,E]."""
    out = torch.zeros_like(scores)
    for x in range(len(how.prefixes)):
        at = torch.from_numpy(np.flatnonzero(how.prefix_of == x))
        out = out.index_copy(-1, at, scores[..., at].log_softmax(-1))
    return out


def llama(table: Dialogue, how: Spelling, seed: int = 0) -> tuple[Any, Callable[[int], Tensor]]:
    """A tiny Llama of the embedded kind, and the function that scores the edges [E] of a state with it.

    It reads a state as one word for each thing that the agent knows. Its next-token distribution is restricted to
    the edges that the trie allows, as in constrained decoding.
    """
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from algos.policies.embedded import Shape, new_model

    prompts = [[f"{i}={part}" for i, part in enumerate(state)] for state in table.states]
    spoken = sorted({token for message in how.messages for token in message} - {STOP})
    words = dict.fromkeys(["<pad>", STOP, *spoken, *(word for prompt in prompts for word in prompt)])
    ids = {word: i for i, word in enumerate(words)}
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="<pad>")), pad_token="<pad>", eos_token=STOP
    )
    shape = Shape(layers=1, hidden=8, heads=2, mlp=16, vocab=len(ids), context=32)
    model: Any = new_model(shape, tokenizer, seed).double()
    longest = max(len(prefix) for prefix in how.prefixes)
    tokens = torch.tensor([ids[token] for _, token in how.edges])
    at = torch.tensor([len(prompts[0]) + len(prefix) - 1 for prefix in how.prefixes])  # padding lies behind it

    def score(s: int) -> Tensor:
        rows = [[ids[w] for w in (*prompts[s], *p)] + [0] * (longest - len(p)) for p in how.prefixes]
        logits = model(torch.tensor(rows)).logits[torch.arange(len(rows)), at]  # [X,V]
        return trie_softmax(logits[torch.from_numpy(how.prefix_of), tokens], how)

    return model, score


def differentiated(score: Callable[[int], Tensor], states: int, parameters: list[Tensor], how: Spelling) -> Policy:
    """The policy of a function of some parameters that scores the edges [E] of one state."""
    logps, jacobians = [], []
    for s in range(states):
        logp = score(s)
        found = torch.autograd.grad(logp, parameters, torch.eye(len(logp), dtype=logp.dtype), is_grads_batched=True)
        logps.append(logp.detach())
        jacobians.append(torch.cat([g.flatten(1) for g in found], 1))
    return Policy(how, torch.stack(logps).numpy(), torch.stack(jacobians).numpy())


@cache
def policy(setting: Setting, kind: PolicyKind, seed: int = 0) -> Policy:
    """The policy of an audit: softmax of normal logits, or a freshly initialised tiny Llama."""
    table = dialogue(setting)
    if kind == "tabular":
        how = one_token(table.actions)
        generator = named_generator(seed, f"policy/{setting.name}/{kind}")
        return tabular(0.7 * generator.standard_normal((len(table.states), len(how.edges))), how)
    how = wordy(table.actions)
    model, score = llama(table, how, seed)
    return differentiated(score, len(table.states), list(model.parameters()), how)


def named_generator(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for every name: what is drawn for one thing never moves another's draws."""
    return np.random.default_rng(derive_seed(seed, name))


# Exact values ---------------------------------------------------------------------------------------------


def values(table: Dialogue, pi: Policy, gamma_turn: float = 1.0, gamma_token: float = 1.0) -> tuple[Floats, Floats]:
    """V before each token and Q of each token, by backward induction.

    A turn's reward comes with its last token; the step that leaves a turn costs ``gamma_turn gamma_token``.

    Returns:
        [N,X] value of a node after a prefix; [N,E] value of taking an edge there.
    """
    how, nodes = pi.spelling, len(table.state_of)
    v, q = np.zeros((nodes + 1, len(how.prefixes))), np.zeros((nodes, len(how.edges)))
    for n in reversed(range(nodes)):
        chance, after, reward = (x[n] for x in table.moves)
        outcome = (chance * (reward + gamma_turn * gamma_token * v[after, 0])).sum(1)  # [A]
        p = np.exp(pi.logp[table.state_of[n]])
        for x in reversed(range(len(how.prefixes))):  # longer prefixes first
            for e in np.flatnonzero(how.prefix_of == x):
                q[n, e] = outcome[how.ends[e]] if how.child_of[e] < 0 else gamma_token * v[n, how.child_of[e]]
                v[n, x] += p[e] * q[n, e]
    return v[:nodes], q


def visits(table: Dialogue, pi: Policy) -> Floats:
    """[N] probability that an episode passes a node."""
    how, visited = pi.spelling, np.append(table.starts, 0.0)
    by_message = np.exp(pi.message_logp)
    for n in range(len(table.state_of)):
        by_action = np.bincount(how.action_of, by_message[table.state_of[n]], len(table.actions))
        np.add.at(visited, table.moves.after[n], visited[n] * by_action[:, None] * table.moves.chance[n])
    return visited[:-1]


def expected_return(table: Dialogue, pi: Policy) -> float:
    """J, the expected return of an episode."""
    return float(table.starts @ values(table, pi)[0][:, 0])


def true_gradient(table: Dialogue, pi: Policy) -> Floats:
    """dJ/d theta [P] by the policy gradient theorem: sum over nodes and edges of P(edge) Q(edge) dlogp(edge)."""
    how, (_, q), p = pi.spelling, values(table, pi), np.exp(pi.logp)
    reach = np.ones((len(p), len(how.prefixes)))  # [S,X] probability of a prefix
    for e, child in enumerate(how.child_of):  # shorter prefixes first, because edges stand in the order of messages
        if child >= 0:
            reach[:, child] = reach[:, how.prefix_of[e]] * p[:, e]
    weight = np.zeros_like(p)
    at = table.state_of
    np.add.at(weight, at, visits(table, pi)[:, None] * reach[at][:, how.prefix_of] * p[at] * q)
    return weight.ravel() @ pi.jacobian.reshape(weight.size, -1)


class Trajectory(NamedTuple):
    """One possible episode: its edges as (state, edge), the chance of the luck in it, and the rewards of its turns."""

    edges: tuple[tuple[int, int], ...]
    luck: float
    rewards: tuple[float, ...]


def trajectories(table: Dialogue, how: Spelling) -> Iterator[Trajectory]:
    """Every episode that can happen. Its probability is ``luck`` times that of its edges."""
    over = len(table.state_of)

    def walk(node: int, so_far: Trajectory) -> Iterator[Trajectory]:
        if node == over:
            yield so_far
            return
        s = int(table.state_of[node])
        for path, action in zip(how.paths, how.action_of):
            edges = (*so_far.edges, *((s, int(e)) for e in path if e >= 0))
            for chance, after, reward in zip(*(x[node, action] for x in table.moves)):
                if chance > 0:
                    rewards = (*so_far.rewards, float(reward))
                    yield from walk(int(after), Trajectory(edges, so_far.luck * chance, rewards))

    for node, chance in enumerate(table.starts):
        if chance > 0:
            yield from walk(node, Trajectory((), float(chance), ()))


# Sampling -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sampled:
    """Batches of sampled episodes, all of them at once.

    Attributes:
        group: [B] group of a row, the same in each batch.
        node: [I,B,K] node before each turn.
        reward: [I,B,K].
        greedy: [I,B] return of the greedy episode with the row's start, fact and luck.
        lengths: [I,B] sampled tokens of a row.
        edge: [I,B,T] edge of a token, as ``state * E + edge``; -1 where the token was not sampled.
        place: [I,B,T] where it was sampled, as ``node * X + prefix``; -1 likewise.
        turn: [I,B,T] turn of a token, -1 likewise.
    """

    table: Dialogue
    policy: Policy
    group: Ints
    node: Ints
    reward: Floats
    greedy: Floats
    lengths: Ints
    edge: Ints
    place: Ints
    turn: Ints

    def batch(self, i: int, critic: tuple[float, float] = (1.0, 1.0)) -> Batch:
        """Batch ``i`` with every field filled, in float64.

        Old and reference policy are the policy itself; ``value`` is the exact value with the discounts ``critic``
        (per turn, per token), of what the agent knows.
        """
        action = torch.from_numpy(self.turn[i] >= 0)
        logp = self.at_edges(self.policy.logp, i)
        return Batch(
            tokens=torch.from_numpy(np.maximum(self.edge[i], 0) % len(self.policy.spelling.edges)),
            action=action,
            turn=torch.from_numpy(self.turn[i]),
            reward=torch.from_numpy(self.reward[i]),
            n_turns=torch.full((len(self.group),), self.table.turns),
            group=torch.from_numpy(self.group),
            terminated=torch.ones(len(self.group), dtype=torch.bool),
            state_key=torch.from_numpy(self.table.state_of[self.node[i]] + 1),
            version=torch.zeros(len(self.group), dtype=torch.int64),
            behaviour_logp=logp,
            old_logp=logp,
            ref_logp=logp,
            value=self.at_places(_values(self.table, self.policy, *critic), i),
            bootstrap=torch.zeros(len(self.group), dtype=torch.float64),
            greedy_return=torch.from_numpy(self.greedy[i]),
            old_entropy=self.at_places(self.policy.entropy[self.table.state_of], i),
        )

    def at_edges(self, x: Floats, i: int) -> Tensor:
        """Numbers of edges [S,E], for the tokens of batch ``i``: [B,T], 0 off action."""
        return torch.from_numpy(np.where(self.edge[i] >= 0, x.ravel()[self.edge[i]], 0.0))

    def at_places(self, x: Floats, i: int) -> Tensor:
        """Numbers of places [N,X], for the tokens of batch ``i``: [B,T], 0 off action."""
        return torch.from_numpy(np.where(self.place[i] >= 0, x.ravel()[self.place[i]], 0.0))

    def on_edges(self, i: int, weight: Floats) -> Floats:
        """Adds up numbers of the tokens [B,T] by edge: [S E]."""
        at = self.edge[i] >= 0
        return np.asarray(np.bincount(self.edge[i][at], weight[at], self.policy.logp.size), np.float64)


@cache
def _values(table: Dialogue, pi: Policy, gamma_turn: float, gamma_token: float) -> Floats:
    return values(table, pi, gamma_turn, gamma_token)[0]


def sample(
    table: Dialogue, pi: Policy, generator: np.random.Generator, *, batches: int, groups: int, size: int
) -> Sampled:
    """Samples batches of ``groups`` groups of ``size`` episodes.

    As in convgym, the episodes of a group share the start, the hidden fact and the luck of each turn (one uniform
    number, whatever was said), and differ in the agent's words alone. Two group sizes with the same number of rows
    draw their words from the same numbers.
    """
    rows = groups * size
    words = generator.random((batches, rows, table.turns))
    context = generator.choice(len(table.chances), (batches, groups), p=table.chances).repeat(size, 1)  # [I,B]
    luck = generator.random((batches, groups, table.turns)).repeat(size, 1)  # [I,B,K]
    cumulated = np.exp(pi.message_logp).cumsum(1)  # [S,M]

    def said(states: Ints, k: int) -> Ints:
        """[I,B] messages by inverse transform; the clip is for rounding."""
        below = (words[:, :, k, None] >= cumulated[states]).sum(-1)
        return np.asarray(np.minimum(below, cumulated.shape[1] - 1))

    node, message, reward = _play(table, pi, context, luck, said)
    _, _, at_best = _play(table, pi, context, luck, lambda states, k: pi.greedy[states])
    edge, place, turn = _laid_out(table, pi.spelling, node, message)
    return Sampled(
        table, pi, np.arange(groups).repeat(size), node, reward, at_best.sum(2), pi.spelling.lengths[message].sum(2),
        edge, place, turn,
    )  # fmt: skip


def _play(table: Dialogue, pi: Policy, context: Ints, luck: Floats, said: Any) -> tuple[Ints, Ints, Floats]:
    """[I,B,K] nodes, messages and rewards of episodes in which ``said(states, k)`` speaks."""
    node, fact = table.contexts[context].transpose(2, 0, 1)
    steps = []
    for k in range(table.turns):
        message = said(table.state_of[node], k)
        where = (fact, node, pi.spelling.action_of[message])
        cumulated = table.law.chance[where].cumsum(-1)  # [I,B,b]
        branch = (luck[:, :, k, None] >= cumulated[..., :-1]).sum(-1)  # the last one takes what rounding leaves
        possible = (table.law.chance[where] > 0).sum(-1) - 1
        branch = np.minimum(branch, possible)
        steps.append((node, message, table.law.reward[(*where, branch)]))
        node = table.law.after[(*where, branch)]
    assert (node == len(table.state_of)).all(), "every episode is over after the same number of turns"
    nodes, messages, rewards = zip(*steps)
    return np.stack(nodes, 2), np.stack(messages, 2), np.stack(rewards, 2)


def _laid_out(table: Dialogue, how: Spelling, node: Ints, message: Ints) -> tuple[Ints, Ints, Ints]:
    """[I,B,T] edges, places and turns of the tokens: before each message stands one token of what was observed."""
    lengths = how.lengths[message]  # [I,B,K]
    width = int((1 + lengths).sum(2).max())
    edge, place, turn = (np.full((*node.shape[:2], width), -1) for _ in range(3))
    grid: Any = np.indices(node.shape[:2])
    i, b = grid  # [I,B] each
    begin = np.zeros(node.shape[:2], np.int64)
    for k in range(node.shape[2]):
        for step in range(how.paths.shape[1]):
            on = step < lengths[:, :, k]
            at = (i[on], b[on], begin[on] + 1 + step)
            n, e = node[:, :, k][on], how.paths[message[:, :, k][on], step]
            edge[at] = table.state_of[n] * len(how.edges) + e
            place[at] = n * len(how.prefixes) + how.prefix_of[e]
            turn[at] = k
        begin += 1 + lengths[:, :, k]
    return edge, place, turn
