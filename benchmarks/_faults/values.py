"""Values that must be refused, by key, in Hydra's grammar."""

# Each value on the right is refused under each key on the left.
WRONG_VALUES = (
    # whole numbers of at least 1
    (
        "data.batch_size trainer.max_epochs trainer.num_nodes views.size model.projector.out_dim callbacks.online.k"
        " callbacks.online.bank_at_most callbacks.checkpoints.every_n_epochs callbacks.metrics.every_n_steps",
        '0 -2 0.5 "4" true null nan [4] {a:1}',
    ),
    # whole numbers of at least 0
    (
        "seed data.num_workers model.projector.layers callbacks.online.every_n_epochs callbacks.hardness.every_n_steps",
        '-2 0.5 "4" true null nan [4] {a:1}',
    ),
    # whole numbers of at least 1, or null
    ("micro_batch_size model.projector.hidden_dim callbacks.checkpoints.every_n_steps", '0 -1 1.5 "4" true [4]'),
    ("trainer.max_steps", '0 -2 1.5 "10" true null'),
    ("trainer.devices", '0 -2 1.5 "2" all true null [7]'),
    # numbers
    ("loss.temperature optimizer.lr", '0 -0.1 "0.1" abc true null nan inf -inf 1e300 [0.1] {a:1}'),
    (
        "optimizer.weight_decay optimizer.momentum schedule.warmup_epochs",
        '-0.1 "0.1" abc true null nan inf -inf 1e300 [0.1] {a:1}',
    ),
    ("ema", '0 1 1.5 -0.1 "0.9" true nan'),
    ("views.flip views.jitter views.grey views.blur views.solarise", "-0.1 1.1 x null true nan"),
    ("views.strength", "-1 3 x null nan"),
    ("views.area views.aspect views.blur_sigma", "[0,1] [0.5,0.1] [0.5] 0.5 x [nan,1]"),
    ("model.encoder.mean model.encoder.std", "0.5 [0.5] x [0.5,0.5,a]"),
    # switches
    (
        "force debug dry_run preflight compile tf32 static_graph model.channels_last callbacks.online.probe"
        " model.encoder.zero_init_last trainer.deterministic",
        "1 yes [] {a:1}",
    ),
    # names
    (
        "select schedule.rule views.crop views.interpolation views.brightness trainer.accelerator trainer.precision"
        " model.encoder.stem",
        "nothing null true 1 [] {a:1}",
    ),
    ("model.encoder.depth", '0 19 18.0 "18" true null'),
    ("model.encoder.width", '0 -1 0.3 "2" true null nan inf 65'),
    ("trusted", "mypkg null [3]"),
    # paths and texts
    ("ckpt_path data.path model.weights", "'' 3 true [a] {a:1}"),
    # far beyond the memory of any machine
    ("views.size data.num_workers model.projector.hidden_dim model.projector.out_dim seed", "1000000000000 1e300"),
)


def wrong_overrides() -> list[str]:
    """Return KEY=VALUE for every pair."""
    pairs = ((keys.split(), values.split()) for keys, values in WRONG_VALUES)
    return [f"{key}={value}" for keys, values in pairs for key in keys for value in values]
