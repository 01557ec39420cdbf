"""The films of the README: what three agents have learned, after a run with the defaults of their scripts.

Run:   python benchmarks/films.py
       trains for about three minutes and writes to results/:
       options.gif      option-critic in the four rooms: the path, coloured by the option that acts
       hindsight.gif    HER in the four rooms: one network walks to twelve goals, drawn at random
       imagination.gif  the world model on 8 x 8, on a random walk: the real steps, and those imagined from the first on
"""

import io
import sys
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gridworld  # noqa: E402 (this file is run from its folder's parent)
import her  # noqa: E402
import options_critic  # noqa: E402
import world_model  # noqa: E402

HEAD = 28  # pixels above a frame, for a line of text
COLOURS = (np.array(mpl.colormaps["tab10"].colors) * 255).astype(np.uint8)


def frame(text: str, *images: np.ndarray) -> Image.Image:
    """Images (H, W, 3) uint8 side by side, with a line of text above."""
    gap = np.full((len(images[0]), 12, 3), 255, np.uint8)
    body = np.concatenate([part for image in images for part in (image, gap)][:-1], axis=1)
    whole = Image.new("RGB", (body.shape[1], len(body) + HEAD), "white")
    whole.paste(Image.fromarray(body), (0, HEAD))
    ImageDraw.Draw(whole).text((4, 4), text, fill="black", font=ImageFont.load_default(15))
    return whole


def write(name: str, frames: list[Image.Image]) -> None:
    """An animated GIF that rests on its last frame."""
    gif, still = io.BytesIO(), [250] * (len(frames) - 1) + [1500]
    small = [image.reduce(2).quantize(64, dither=Image.Dither.NONE) for image in frames]
    small[0].save(gif, "GIF", save_all=True, append_images=small[1:], duration=still, loop=0)
    (ROOT / "results" / name).write_bytes(gif.getvalue())
    print(f"results/{name}: {len(frames)} frames, {len(gif.getvalue()) // 1000} kB")


def paint(image: np.ndarray, grid: gridworld.GridWorldEnv, cell: tuple[int, int], colour: np.ndarray) -> None:
    """Colour the middle of a cell of a rendered map."""
    side = len(image) // grid.rows
    row, col = np.array(cell) * side
    image[row + side // 4 : row + side - side // 4, col + side // 4 : col + side - side // 4] = colour


@torch.no_grad()
def options(args: options_critic.Args, network: torch.nn.Module) -> None:
    env = args.make_env(render_mode="rgb_array")
    obs, grid, option, path, frames, ended = env.reset(seed=10_000)[0], env.unwrapped, None, [], [], False
    while not ended:
        q, (log_pi, beta) = network.q(torch.tensor(obs[None])), network.act(torch.tensor(obs[None]))
        if option is None or beta[0, option] > 0.5:  # as greedy_policy in the script
            option = int(q.argmax())
        path.append((tuple(grid.cells[grid.cell_of[grid.state]]), COLOURS[option]))
        image = env.render()
        for cell, colour in path[:-1]:
            paint(image, grid, cell, colour)
        frames.append(frame(f"option-critic, step {len(path) - 1}: option {option} acts", image))
        obs, _, terminated, truncated, _ = env.step(int(log_pi[0, option].argmax()))
        ended = terminated or truncated
    image = env.render()
    for cell, colour in path:
        paint(image, grid, cell, colour)
    write("options.gif", [*frames, frame(f"option-critic, step {len(path)}: the goal", image)])


@torch.no_grad()
def hindsight(args: her.Args, network: torch.nn.Module) -> None:
    frames, env = [], args.make_env(render_mode="rgb_array", random_goal=True)
    for goal in range(12):
        obs, steps, ended = env.reset(seed=10_000 + goal)[0], 0, False
        while not ended and steps < args.goal_steps:
            frames.append(frame(f"hindsight replay, goal {goal + 1} of 12, step {steps}", env.render()))
            obs, _, terminated, truncated, _ = env.step(int(network(torch.tensor(obs)).argmax()))
            ended, steps = terminated or truncated, steps + 1
        frames.append(
            frame(f"hindsight replay, goal {goal + 1} of 12, {'reached' if terminated else 'missed'}", env.render())
        )
    write("hindsight.gif", frames)


@torch.no_grad()
def imagination(args: world_model.Args, networks: torch.nn.ModuleDict) -> None:
    model, env = networks["model"], args.make_env(render_mode="rgb_array")
    rng, obs, grid = np.random.default_rng(1), env.reset(seed=10_000)[0], env.unwrapped
    z, frames, right, action = world_model.code(model.encode(torch.tensor(obs[None]))), [], 0, 1
    everywhere = torch.tensor(gridworld.observe_all(env))
    for step in range(1, 31):
        action = action if rng.random() < 0.7 else int(rng.integers(4))  # random, but it gets around
        env.step(action)
        z = world_model.code(model.predict(z, torch.tensor([action])))
        near, real = torch.cdist(model.decoder(z), everywhere)[0], env.render()
        right += int(near.argmin()) == grid.state
        imagined, side = np.full_like(real, 248), len(real) // grid.rows
        imagined[::side], imagined[:, ::side] = 206, 206
        for state, weight in enumerate((-8 * near).softmax(0).tolist()):
            paint(
                imagined, grid, grid.cells[grid.cell_of[state]], np.uint8([248 - 220 * weight, 248 - 122 * weight, 248])
            )
        frames.append(frame(f"step {step}: real, and imagined ({right} right)", real, imagined))
        if grid.terminal[grid.state]:
            break
    write("imagination.gif", frames)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rooms = {"layout": "four_rooms", "log_dir": Path(folder)}
        args = options_critic.Args(**rooms, seed=13)  # in 8 of the 10 seeds from 11 on, one option does everything
        options(args, options_critic.train(args))
        args = her.Args(**rooms)
        hindsight(args, her.train(args))
        args = world_model.Args(grid_size=8, log_dir=Path(folder))
        imagination(args, world_model.train(args))
