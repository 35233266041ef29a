"""`trpo-jax evaluate`."""

from typing import Annotated

import tyro

from trpo_jax.cli.arguments import parse
from trpo_jax.config import LARGEST_SEED, config, setting

DESCRIPTION = (
    "Play episodes with the newest policy of a run, or of every run of a sweep, and print mean, standard deviation and 95 % "
    "interval."
)


@config
class EvaluateArguments:
    """Arguments of `trpo-jax evaluate`."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder that `trpo-jax train` or `trpo-jax sweep` wrote, or SWEEP/NAME for runs of a sweep (NAME: ant or ant-seed0)."""
    episodes: int = setting(default=128, at_least=2)
    """Episodes to play, side by side; at least 2."""
    deterministic: bool = setting(default=True)
    """Act with the policy's mean action instead of samples."""
    seed: int = setting(default=0, at_least=0, at_most=LARGEST_SEED)
    """Seed of the initial states and, for a stochastic policy, of the actions."""


def evaluate_command(arguments: list[str]) -> int:
    """Evaluate as the arguments say; return the exit code."""
    parsed = parse(EvaluateArguments, arguments, command="evaluate", description=DESCRIPTION)

    import jax

    from trpo_jax.agent.evaluate import confidence_interval, summarize
    from trpo_jax.runs.run import evaluate_runs
    from trpo_jax.runs.run_folder import open_run_folder
    from trpo_jax.sweep.finding import find_runs
    from trpo_jax.training.fields import setting_in_words, short_names

    found = find_runs(parsed.run)
    runs = [open_run_folder(run.path) for run in found]
    jax.devices()  # start the devices now: only a failure here is reported as a one-line error
    evaluated = evaluate_runs(runs, num_episodes=parsed.episodes, deterministic=parsed.deterministic, seed=parsed.seed)
    kind = "deterministic" if parsed.deterministic else "stochastic"
    words = short_names([name for run in found for name in run.swept])
    for run, (run_config, step, episodes) in zip(found, evaluated, strict=True):
        metrics, (low, high) = summarize(episodes, run_config.agent.action_repeat), confidence_interval(episodes)
        if len(found) > 1:
            setting = setting_in_words({words[name]: value for name, value in run.swept.items()})
            print(" ".join(filter(None, [run.path.name, setting])))
        print(f"{run_config.environment} ({run_config.backend}) after {step:,} steps, {parsed.episodes} {kind} episodes")
        print(f"return  {metrics['eval/episode_reward']:.1f} ± {metrics['eval/episode_reward_std']:.1f} (standard deviation)")
        print(f"        95 % interval of the mean: {low:.1f} … {high:.1f}")
        for name, cost in metrics.items():
            if name.startswith("eval/episode_cost") and not name.endswith("_std"):
                label = name.removeprefix("eval/episode_").replace("_", " ")
                print(f"{label:7} {cost:.1f} ± {metrics[f'{name}_std']:.1f}")
        print(f"length  {metrics['eval/avg_episode_length']:.1f} ± {metrics['eval/std_episode_length']:.1f}")
    return 0
