"""Settings of ``cryoeq reconstruct`` in version 0.1: their names today, and those that are gone."""

from cryoeq.config.frozen import Removed

# Keys of version 0.1, read for one version more.
RENAMED = {
    "input.reference": "input.compare_to",
    "search.starts": "search.multi_start.min",
    "search.most_starts": "search.multi_start.max",
    "search.start_iterations": "search.initial_model.iterations",
    "search.batch_size": "search.initial_model.batch_size",
    "search.first_shell": "search.initial_model.first_shell",
    "search.start_shell": "search.initial_model.last_shell",
    "search.settled_shells": "search.consensus.shells",
    "search.further_iterations": "search.consensus.max_extra_iterations",
    "search.settled_images": "search.consensus.max_particles",
    "search.iterations": "search.half_sets.iterations",
    "search.searched_shell": "search.half_sets.max_exhaustive_shell",
    "search.polishing_iterations": "search.local_refinement.iterations",
    "search.trial_shifts": "search.offset_samples",
    "search.particle_radius": "search.mask_radius",
    "encoder.trunk": "encoder.design.trunk",
    "encoder.kernel": "encoder.design.kernel",
    "encoder.sampler": "encoder.design.sampler",
    "encoder.samples": "encoder.design.samples",
    "encoder.degree": "encoder.design.degree",
    "hybrid.shell": "hybrid.max_shell",
    "hybrid.steps": "hybrid.training_steps",
    "hybrid.rate": "hybrid.learning_rate",
    "hybrid.first_noise": "hybrid.initial_noise_scale",
    "loss.leak": "loss.wta_epsilon",
    "loss.rendered_weight": "loss.synthetic_weight",
    "training.rendered_batch_size": "training.synthetic_batch_size",
    "training.encoder_rate": "training.encoder_learning_rate",
    "training.decoder_rate": "training.decoder_learning_rate",
    "training.images_from": "training.image_loss_start",
    "training.marching": "training.frequency_marching",
}
# Keys of version 0.1 without a successor: the value that changes nothing, and why the setting is gone.
REMOVED = {
    **{
        key: Removed(value, "the regression of poses by a network is gone: encoders of views pose better")
        for key, value in (
            ("hybrid.final_steps", 300),
            ("hybrid.sharpness", 2.0),
            ("hybrid.least_confidence", 0.9),
            ("hybrid.iterations", 5),
        )
    },
    "search.decoder_steps": Removed(
        0, "an implicit decoder fitted to the final poses gave 12.5 Å where the map has 12.0 Å"
    ),
    "encoder.head": Removed(
        "rows", "the other representation of rotations was never better (5.7° and 11.8° against 3 to 4°)"
    ),
}
