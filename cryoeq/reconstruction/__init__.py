"""Ab initio reconstruction by expectation-maximisation (EM) over poses: from particle images to half maps.

Model. Particle i shows a slice of the map's transform V at pose R, shifted by t, times its CTF, with Gaussian noise::

    y_i(k) = C_i(k) exp(2 pi i k.t / n) P_R(k) + noise,        P_R(k) = V(R^T (kx, ky, 0))

Likelihood. With noise precision p per coefficient, up to a constant of the image::

    log p(y | R, t) = sum_k p_k [ Re(C_k y_k exp(-2 pi i k.t / n) conj P_R(k)) - 1/2 C_k^2 |P_R(k)|^2 ]

Noise and scale of a particle. A group of particles (optics, micrograph) whose noise is 1 / w(k) of the common one, and
a particle whose amplitude is s, have C_k y_k times w s and C_k^2 times w s^2: nothing else changes (``noise_groups``,
``particle_scale``)::

    s = ( sum_k p_k w_k Re(C_k y_k conj P(k)) + 1 / sigma_s^2 ) / ( sum_k p_k w_k C_k^2 |P(k)|^2 + 1 / sigma_s^2 )

E-step (``expectation``). The posterior of each particle over a grid of poses and a few offsets. For g in O(2) the image
g.y at pose R is y at pose rho(g) R, so one product of disk harmonics gives all in-plane angles and both mirrors of a
view, and views of one asymmetric unit are enough for a map of a point group (``pose_likelihood``). The scores of all
poses become weights in torch (``pose_scores``), or in compiled kernels on CPUs (``compiled_scores``)::

    gamma_i(R, t) = p(y_i | R, t) p(t) / sum_{R', t'} p(y_i | R', t') p(t')

From noise to the consensus a search may try a few views J of each particle only, all in-plane angles and mirrors of
each: a set L that an encoder proposes, and a random draw D from the other views, each of which stands for m = |not L| /
|D| of them (``proposed_views``; ``cryoeq.training.proposals``)::

    gamma_i(R, t) = w_J p(y_i | R, t) p(t) / sum_{J' in L and D} w_J' sum_{R' of J', t'} p(y_i | R', t') p(t'),
    w = 1 in L, m in D

M-step (``maximization``). Half maps from posterior-weighted sums, Wiener-filtered by their own correlation::

    V(k) = sum_i sum_{R, t} gamma_i p C_i y_i / ( sum_i sum_{R, t} gamma_i p C_i^2 + 1 / tau^2(k) ),
    tau^2 from SNR(k) = FSC(k) / (1 - FSC(k))

The whole::

    particles   <- CTF-multiplied transforms of all images                           particle_transforms
                   weighted by the noise of their groups                             noise_groups
    half_set    <- random half sets                                                  data.half_sets
    repeat                                                                           ab_initio
        initial models: stochastic EM from noise, random starts until reproduced     initial_model, multi_start
        consensus refinement: one reference for both half sets, low resolution       half_set_refinement
        global re-alignment where particles are shifted                              global_realignment
    until the map is of one hand, or for the second time                             acceptance
    rotate to the symmetry axes, average                                             ab_initio
    split: from here on each half set has its own reference                          state.HalfSetMaps
    before each of the following: the scale of each particle at its pose             particle_scale
    half-set refinement: EM over all orientations; the halves' FSC sets the radius   half_set_refinement
    global re-alignment: exhaustive search of the particles that fit worst           global_realignment
    beyond the exhaustive search: local refinement of each half set, and maps        local_refinement
    stop unless the structure is reproducible                                        acceptance
    final iteration: all particles against the mean map                              half_set_refinement
    final poses: local refinement to the last shell, and global re-alignment         global_realignment
    at the full box, from these poses: both half sets in turn to the limit of the    full_box_refinement
        data, within the solvent mask; then all particles against the mean map

From a map that is given, both half sets start at once                               initial_reference

Several structures (``--classes``)::

    repeat                                                                           classification
        initial models of all classes, from noise, and images of noise alone         initial_model
        joint refinement: one posterior over class and pose                          class_refinement
    until another random start reproduces the partition
    assign each particle by the maps of the other half set                           class_assignment
    leave out a class that is left with hardly any particle, and assign again         classification
    each class alone from "split" on, its last iterations without junk               half_set_refinement

T, O and I are imposed from the first map on, on their axes, and so are other groups where the map without symmetry is
no more than round. Half maps for the FSC come from the two half sets alone. Where poses are given, ``known_poses``
makes the maps at once.

Scheres 2012, J. Mol. Biol. 415, 406-418 (EM, regularised likelihood). Scheres and Chen 2012, Nature Methods 9, 853-854
(independent half sets). Punjani et al. 2017, Nature Methods 14, 290-296 (stochastic ab initio).
"""
