"""`Control`: what the controller may do and how strongly, by the method's symbols."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from adaptiverl.arms import GAINS, Arm, complete_bandit, shared_by
from adaptiverl.fields import check_fields
from adaptiverl.limits import BETA1, STAND_IN_LR, Limits, MomentumKind, limits_of
from adaptiverl.terms import (
    LAW_TERMS,
    CooldownShape,
    Home,
    Horizon,
    Law,
    LawTerms,
    Mode,
    Pair,
    search_within,
)
from adaptiverl.weights import Weights, complete_distilled

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

Reward = Literal["neg_loss", "given", "none"]
NoiseTarget = Literal["gradient", "parameter"]
Groups = Literal["one", "own"]
LEARNED_CHANGE: Pair = (0.8, 1.25)
"""The distilled law's change of a knob: a hundredfold of α within 21 updates"""


@dataclass(frozen=True, kw_only=True)
class Control:
    """Gains, bounds, cadence and averaging rates of the controller.

    Attributes:
        mode: Who owns the learning rate (method.md#modes). ``"replace"``: α starts at the first
            group's ``lr`` and every group keeps its ratio to it. ``"modulate"``: α starts at 1 and
            multiplies whatever a scheduler sets.
        every: K, optimizer steps between two updates of the knobs. ``None``: the knobs move only
            when ``optimizer.update(loss)`` is called (method.md#epoch-wise).
        groups: ``"one"``: one α, μ and σ for all parameter groups, which keep their ratios.
            ``"own"``: every group has a controller of its own, over its own sums; all hear the same
            losses (method.md#groups). Not with ``law="range_test"``, nor in `steer`.
        reward: Where r comes from. ``"neg_loss"``: r = −ℓ. ``"given"``: passed to ``observe``.
            ``"none"``: no reward, the loss alone decides.
        beta_loss: β_ℓ, weight of the newest loss in its average, in (0, 1] (method.md#sensors).
        beta_reward: β_r, the same for the reward.
        beta_variance: β_v, the same for the squared deviation.
        gain_lr_reward: k_r, log-units of α per update at full improvement (method.md#laws).
        gain_lr_loss: k_ℓ, log-units of α per update at full worsening.
        gain_momentum_reward: k_μr, logit-units of μ.
        gain_momentum_loss: k_μℓ, logit-units of μ.
        gain_noise_plateau: k_σP, log-units of σ per update on a full plateau.
        gain_noise_reward: k_σr, log-units of σ.
        law: What steers α. ``"loss"``: the losses and rewards that are observed (method.md#laws).
            ``"alignment"``: whether the newest gradient still points along the last update
            (method.md#alignment), a slow climb. ``"range_test"``: the same, by a fast ramp after
            which the weights go back to where they were (method.md#range-test). Nothing need be
            observed for these two, and `every`, the gains of α and `lr_change` do not touch them.
            μ and σ keep their laws either way. ``"bandit"``: one of several sets of gains at a
            time, chosen by what the loss did under each (method.md#bandit). ``"distilled"``: a
            small network, fitted to schedules made in hindsight, moves all three knobs
            (method.md#distilled); the gains do not touch it.
        horizon: T, how many steps the run will take: α is annealed to zero at step T, whatever the
            law, but for the distilled one, which goes by what it has learned; after that nothing
            moves. ``"auto"``: the framework says it, or ``optimizer.set_horizon``. ``None``, where
            nobody can say: never annealed, and of a rate that is found half as much is held.
        cooldown: Last share of the horizon, in [0, 1), over which α falls to zero. A search ends
            where it begins, and losses no longer steer α. In ``"modulate"`` the scheduler anneals;
            leave its warm-up out beside a search, because that is one, and a factor found under a
            low rate stays.
        cooldown_shape: What is left of α when the share p of the cooldown is over: ``"linear"``,
            1 − p, or ``"1-sqrt"``, 1 − √p (method.md#cooldown).
        acquire_from: Where such a law starts to look: an α in ``"replace"``, a factor in
            ``"modulate"``. ``None``: a hundredth of the α at the start; the range test's is a rate
            of 1e-6.
        reuse: (M, E), where the run goes through the same samples in E epochs of M updates before
            it has others, as PPO does after a rollout: this law then reads the gradients of first
            epochs alone (method.md#data-reuse). ``None``: an update is made of new samples.
        snapshot: Where the range test keeps the weights that it goes back to, until its search is
            over: on the ``"host"``, in pinned memory, or on the parameters' own ``"device"``.
            ``None``: on the host.
        arms: The bandit's, 1 to 8: Controls of law ``"loss"`` that differ in their gains,
            `lr_change` and `every`, of which these fields are kept; the control's own are then the
            first arm's. ``None``: its own, the same with ``lr_change=(0.95, 1.05)``, and gains 0.
        window: Losses for which the bandit keeps an arm: steps, or calls of ``update``. ``None``:
            2/`beta_loss`, or the longest `every` where that is more.
        discount: γ in (0, 1], what a window's weight is multiplied by at each later one. ``None``:
            0.95.
        gradient_sensors: Whatever the law, sense the gradient's size and alignment, for `knobs()`
            and the trace (method.md#gradient-sensors). Laws that find the rate do until it is held
            (method.md#alignment); this goes on to the end.
        weights: The distilled law's: a file that ``hindsight.distill`` made. ``None``: the one
            that ships.
        lr_bounds: (α_min, α_max). ``None``: (lr/100, 10·lr) in ``"replace"``, (0.1, 10) in
            ``"modulate"``; (1e-4, 1e4) times the α at the start with ``"alignment"`` and
            ``"distilled"``, rates
            of (1e-6, 3) with ``law="range_test"``.
        momentum_bounds: (μ_min, μ_max). ``None``: (0.85, 0.99), for SGD (0.85, 0.95), widened to
            hold the starting μ.
        noise_bounds: (σ_min, σ_max), in units of a tensor's RMS gradient. σ_max = 0 switches the
            noise off.
        noise_target: What the noise is added to (method.md#noise). ``"gradient"``: to the gradient,
            in units of its RMS, before the moments see it. ``"parameter"``: to the parameter after
            its update, p ← p + σ·RMS(p)·α·ξ, with α the group's rate in effect. The riskier choice:
            nothing averages or bounds the noise then, and what was added stays.
        noise_floor: The positive floor that stands in for log 0 when σ_min = 0
            (method.md#noise-law). ``None``: σ_max/1000.
        lr_change: (c↓, c↑), the factor α may change by in one update.
        spike_clip: c, how many scales of its own movement one loss may move the averages by
            (method.md#spikes). ``math.inf``: no clipping, the specification to the letter.
        plateau_trend: (ε_Δ, s_Δ), centre and slope of the plateau score's first factor
            (method.md#plateau-score; docs/plateau-defaults.md has why these).
        plateau_variance: (ε_v, s_v), centre and slope of its second.

    Raises:
        ValueError: A value outside its range; the message names it, its value and the range.
        TypeError: A value of the wrong kind.

    Examples:
        >>> Control(every=20, lr_bounds=(1e-5, 2e-4)).every
        20
    """

    mode: Mode = "replace"
    every: int | None = 10
    groups: Groups = "one"
    reward: Reward = "neg_loss"
    beta_loss: float = 0.02
    beta_reward: float = 0.02
    beta_variance: float = 0.02
    gain_lr_reward: float = 0.05
    gain_lr_loss: float = 0.05
    gain_momentum_reward: float = 0.02
    gain_momentum_loss: float = 0.04
    gain_noise_plateau: float = 0.08
    gain_noise_reward: float = 0.06
    law: Law = "loss"
    horizon: Horizon = None
    cooldown: float = 0.4
    cooldown_shape: CooldownShape = "linear"
    acquire_from: float | None = None
    reuse: tuple[int, int] | None = None
    snapshot: Home | None = None
    arms: tuple[Arm, ...] | None = None
    window: int | None = None
    discount: float | None = None
    gradient_sensors: bool = False
    weights: Weights | str | os.PathLike[str] | None = None
    lr_bounds: Pair | None = None
    momentum_bounds: Pair | None = None
    noise_bounds: Pair = (0.0, 0.1)
    noise_target: NoiseTarget = "gradient"
    noise_floor: float | None = None
    lr_change: Pair = (0.9, 1.2)
    spike_clip: float = 5.0
    plateau_trend: Pair = (0.6, 0.2)
    plateau_variance: Pair = (1.5, 0.1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.law == "bandit":
            complete_bandit(self)
        if self.law == "distilled":
            complete_distilled(self)

    def limits(self, lr: float, momentum: float, kind: MomentumKind = BETA1) -> Limits:
        """The bounds in force for a start, those left at ``None`` filled in.

        Args:
            lr: The first group's learning rate at construction.
            momentum: The first group's μ (AdamW's β₁) at construction, in [0, 1).
            kind: What this optimizer's momentum is called, and its default bounds.

        Raises:
            ValueError: The start lies outside bounds that the user gave, or ``lr`` is 0 in
                ``"replace"``, where α is a multiple of it (method.md#modes).
        """
        return limits_of(self, lr, momentum, kind)

    @property
    def terms(self) -> LawTerms:
        """What of its law concerns the user."""
        return LAW_TERMS[self.law]

    @property
    def finds_lr(self) -> bool:
        """The rate is looked for, whatever it was at the start."""
        return not self.terms.needs_loss

    @property
    def anneals(self) -> bool:
        """The rate comes down to zero at the horizon, by the controller."""
        told = self.horizon is not None and not self.terms.learned
        return told and self.mode == "replace" and self.cooldown > 0

    @property
    def reads_gradients(self) -> bool:
        """The law wants to know whether a gradient points along the last update."""
        return self.finds_lr or self.terms.learned

    @property
    def is_too_short(self) -> bool:
        """The run that the horizon tells of has no room for the range test's ramp."""
        ramps = self.law == "range_test"
        return ramps and search_within(self.known_horizon, self.cooldown) == 0

    @property
    def known_horizon(self) -> int | None:
        """T, where it is a number; ``"auto"`` counts as None until somebody has said it."""
        return None if self.horizon == "auto" else self.horizon

    def for_run(self, steps: int | None) -> Control:
        """This control for a run of so many optimizer steps, where ``horizon="auto"`` asks for it.

        Args:
            steps: T; None where nobody has said it yet.

        Raises:
            ValueError, TypeError: As the constructor's.
        """
        if self.horizon != "auto" or steps is None:
            return self
        return replace(self, horizon=steps)

    @property
    def is_frozen(self) -> bool:
        """The knobs stay where they start: nothing that is observed moves one, nor the law."""
        return self.rests and not self.finds_lr and not self.anneals

    @property
    def rests(self) -> bool:
        """No gain is above 0, nor has the law learned: nothing observed moves a knob."""
        gains = any(getattr(arm, name) for arm in self.arms or (self,) for name in GAINS)
        return not (gains or self.terms.learned)

    @property
    def reads_sums(self) -> bool:
        """The passes' sums are taken: the law needs them, or who looks."""
        return self.reads_gradients or self.gradient_sensors

    @property
    def hears_losses(self) -> bool:
        """Ranks must agree on what is observed: it may move a knob, or end a search."""
        return not self.rests or self.terms.hears_losses

    @property
    def needs_no_loss(self) -> bool:
        """A run without observations is no mistake: they move nothing, or α by the gradients."""
        return self.rests or self.finds_lr

    def given_lr(self, lr: Any) -> Any:
        """What an optimizer was given as its rate; where it was given None, what stands in for it.

        Raises:
            ValueError: None, and the law starts from the rate.
        """
        if lr is not None:
            return lr
        if not self.finds_lr:
            raise ValueError(
                f"lr must be a number with Control(law={self.law!r}), got None: that law starts "
                "from it. Control.find_lr(horizon) needs none"
            )
        return STAND_IN_LR

    def start_lr(self, lr: float) -> float:
        """α at the start: the first group's rate in ``"replace"``, 1 in ``"modulate"``."""
        return lr if self.mode == "replace" else 1.0

    @classmethod
    def frozen(cls) -> Control:
        """Every gain at zero and no noise: plain AdamW, whatever sets the learning rate."""
        gains = {f.name: 0.0 for f in fields(cls) if f.name.startswith("gain_")}
        return cls(mode="modulate", noise_bounds=(0.0, 0.0), **gains)  # type: ignore[arg-type]

    @classmethod
    def find_lr(cls, horizon: Horizon = None) -> Control:
        """Find the learning rate in the first hundred steps or so, by the range test.

        The weights then go back to where they were, and training begins: `law`. No rate need be
        given. μ and σ stay as they are. Where neither later gradients nor the loss, if it is
        observed, confirm what it found (training starts on a plateau), the slow climb goes on from
        below it.

        Args:
            horizon: T, how many optimizer steps the run will take, those of the search included;
                ``"auto"`` in a framework that knows (docs/frameworks.md).
        """
        return cls._searching("range_test", horizon)

    @classmethod
    def climb(
        cls,
        horizon: Horizon = None,
        groups: Groups = "one",
        reuse: tuple[int, int] | None = None,
    ) -> Control:
        """Find the learning rate while training, by the alignment law, a slow climb.

        Nothing is kept and nothing is put back; μ and σ stay as they are. It is for what `find_lr`
        cannot do: reinforcement learning, whose environments do not go back; a rate for each
        parameter group; CUDA graphs that are captured during the search; weights that something
        else holds copies of.

        Args:
            horizon: T, how many optimizer steps the run will take; ``"auto"`` in a framework that
                knows (docs/frameworks.md).
            groups: As the attribute: ``"own"`` finds a rate for each parameter group.
            reuse: (minibatches, epochs) of PPO and others that go through a rollout several times;
                as the attribute.
        """
        return replace(cls._searching("alignment", horizon), groups=groups, reuse=reuse)

    @classmethod
    def bandit(
        cls,
        arms: Sequence[Control | Arm | Mapping[str, Any]] | None = None,
        window: int | None = None,
        discount: float | None = None,
    ) -> Control:
        """One of several sets of gains at a time, chosen by what the loss did under each.

        Ranks that decide together need one seed, which the choices are drawn by.

        Args:
            arms: As the attribute; what is the same for all arms is as the first Control has it.
            window: As the attribute.
            discount: As the attribute.
        """
        more: dict[str, Any] = {"arms": arms, "window": window, "discount": discount}
        return cls(law="bandit", **more, **shared_by(arms, cls))

    @classmethod
    def distilled(
        cls, horizon: Horizon = None, weights: Weights | str | os.PathLike[str] | None = None
    ) -> Control:
        """A small network moves α and μ, fitted to schedules made in hindsight, from any start.

        Args:
            horizon: T, how many optimizer steps the run will take; ``"auto"`` in a framework that
                knows. There it also anneals. This law does not do without.
            weights: A file that ``hindsight.distill`` wrote; None: the one that ships.

        Raises:
            ValueError: No horizon, or a file that is none.
        """
        rest = {f.name: 0.0 for f in fields(cls) if f.name.startswith("gain_")}
        more: dict[str, Any] = {"weights": weights, "lr_change": LEARNED_CHANGE, **rest}
        return cls(law="distilled", horizon=horizon, every=5, noise_bounds=(0.0, 0.0), **more)

    @classmethod
    def _searching(cls, law: Law, horizon: Horizon) -> Control:
        rest = {f.name: 0.0 for f in fields(cls) if f.name.startswith("gain_")}
        return cls(law=law, horizon=horizon, noise_bounds=(0.0, 0.0), **rest)  # type: ignore[arg-type]

    # Presets: §6. What a preset leaves alone is `Control`'s default, which is within §6 as well;
    # `dataclasses.replace(Control.production(), every=20)` changes one thing of a preset.

    @classmethod
    def gpt2_small(cls) -> Control:
        """GPT-2-small's bounds (method.md#presets).

        The specification's lines: "α_min = 1e-5, α_max ∈ [1e-4, 2e-4] (GPT-2-small)", "μ_min =
        0.85, μ_max = 0.99", "σ_min = 0, σ_max ∈ [0.05, 0.2]". The learning rate that the optimizer
        is given must lie between 1e-5 and 2e-4.
        """
        return cls(lr_bounds=(1e-5, 2e-4), momentum_bounds=(0.85, 0.99), noise_bounds=(0.0, 0.1))

    @classmethod
    def production(cls) -> Control:
        """Small moves of the learning rate (method.md#presets).

        The specification's line: "LR change cap: (c↓, c↑) = (0.9, 1.2) (demo), tighten to
        (0.95, 1.05) for production smoothness".
        """
        return cls(lr_change=(0.95, 1.05))

    @classmethod
    def epochwise(cls) -> Control:
        """One update per call of ``optimizer.update(loss)`` (method.md#epoch-wise, #presets).

        The specification's lines: "Update cadence: K = 10-20 (stepwise) or per epoch", "EMA betas:
        stepwise 0.01-0.03; epoch-wise 0.2-0.4".
        """
        return cls(every=None, beta_loss=0.3, beta_reward=0.3, beta_variance=0.3)
