"""Data types of cryoeq, and THE CONVENTIONS PAGE. Each paragraph names the tests, under ``tests/``, that pin it.

Axes. Arrays are C order: images (y, x), maps (z, y, x); x is the fast axis, row 0 of a file is y = 0.
    Vectors are (x, y) and (x, y, z). [conventions/test_page.test_axes_and_centre]
Centre. The origin of an n-pixel axis is pixel n // 2, in real and in Fourier space, for odd and even n. A quarter turn
    of an array is exact about (n - 1) / 2 instead: the encoder therefore sees odd boxes, whose two centres coincide.
    [conventions/test_page.test_axes_and_centre, conformance/test_encoder.test_proposals_rotate_with_the_image]
Rotation. Poses.rotations is RELION's matrix A (Euler_angles2matrix): it takes volume coordinates to image coordinates,
    r_image = A r_volume; A = Rz(-psi) Ry(-tilt) Rz(-rot) = scipy
    ``Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix().T``.
    Projection is along image z; the slice of the volume's transform is taken at A^T (kx, ky, 0);
    the view direction is the third row of A. [conventions/test_star.test_matrix_of_euler_angles,
    conventions/test_relion_chain.test_projections_of_relion_image_by_image,
    conventions/test_page.test_a_slice_is_the_transform_of_the_sum_along_z]
Group action. For g in O(2), the image g.I of pose A is the image of pose rho(g) A of the same volume,
    rho(g) = diag(g, det g); shifts rotate with g: t -> g t. A mirrored image is a half turn about an in-plane axis, not
    the other hand. [conventions/test_page.test_group_action]
Shift. Poses.shifts_angstrom is (rlnOriginXAngst, rlnOriginYAngst): shifting the observed image by it centres the
    particle. A predicted image is multiplied by exp(+2 pi i k.o / n), o in pixels, which moves the particle to -o.
    [conventions/test_page.test_shift_moves_the_particle_to_minus_o,
    conventions/test_star.test_the_offset_moves_the_particle_of_relion_to_the_centre]
Fourier. Images: centred and orthonormal. Maps: centred, the plain sum divided by n, so that a central slice is the
    orthonormal transform of the projection (the sum along z). Fourier-cropping from n to m keeps grey values (factor
    m / n) and multiplies the pixel size by n / m. [geometry/test_fourier.test_round_trips_and_the_slice_theorem,
    geometry/test_fourier.test_crop_keeps_band_limited_grey_values]
CTF. Protein is bright. lambda = 12.2643247 / sqrt(V (1 + 0.978466e-6 V)) Angstrom;
    defocus(theta) = (U + V) / 2 + (U - V) / 2 cos 2(theta - theta_U);
    gamma = -pi lambda defocus s^2 + pi / 2 Cs lambda^3 s^4 - asin(Q0) - phase shift;
    CTF = -sin(gamma) exp(-B s^2 / 4) scale: +Q0 at s = 0 and positive up to the first zero under focus.
    Premultiplied images carry one CTF more: their model is CTF squared. Phase-flipped images were multiplied by the
    sign of their CTF: their model is its absolute value; where the CTF was refined since, the refined one times the
    sign of the stated one.
    [conventions/test_relion_chain.test_frozen_ctf_of_relion,
    conventions/test_page.test_ctf_is_positive_at_the_origin_and_squared_where_premultiplied,
    conventions/test_page.test_ctf_of_phase_flipped_images_is_its_absolute_value,
    physics/test_ctf.test_a_refined_ctf_keeps_the_signs_that_images_were_flipped_by]
Hand. Projections cannot tell a map from its mirror image: V'(z, y, x) = V(-z, y, x) with A' = J A J,
    J = diag(1, 1, -1), gives the same images. [conventions/test_page.test_the_other_hand_gives_the_same_images]
Frame. Two maps are compared voxel by voxel, whatever their headers say; a model lies in the frame of its map's header.
    There the first voxel is at ORIGIN where that is not zero, else at NXSTART times the pixel size, x, y and z alike.
    Origins that differ by 0.1 pixels and pixel sizes that differ by 0.5 % are said.
    [io/test_map_frame.test_one_corner_of_two_fields, domain/test_volume.test_an_origin_is_said_in_pixels_and_angstrom,
    domain/test_volume.test_a_pixel_size_is_said_with_both_values]
Shells. Shell of a coefficient: ROUND(|k|). Resolution of shell i: n * pixel size / i. A resolution is that of the last
    shell before the curve first drops below the threshold: 0.143 between half maps, 0.5 against a truth.
    [evaluation/test_resolution.test_shells_are_those_of_relion,
    evaluation/test_resolution.test_resolution_is_the_last_shell_before_the_first_drop]
SNR. Variance of the CTF-modulated, shifted signal over the whole box and stack, divided by the variance of the noise.
    [simulation/test_particles.test_scale_gives_the_signal_the_asked_variance]
Units. Angstrom, radians and rotation matrices; degrees and Euler angles exist in file formats and reports only.
    Inside Fourier-space code offsets are in pixels of the plane's box, because shift_phases needs cycles per box;
    Poses, files and reports are in Angstrom; PoseSet.to_angstrom and PoseSet.from_angstrom are the only conversion.
    PoseSet.in_box counts them in the pixels of another box of the same side. Formats that count in pixels themselves
    (RELION 3.0, cryoSPARC) are read to Angstrom and written from it by io.
    [conventions/test_star.test_angles_of_random_rotations_agree_with_scipy,
    domain/test_pose.test_pixels_are_angstrom_over_the_pixel_size,
    domain/test_pose.test_a_shift_is_the_same_length_in_every_box, domain/test_pose.test_pose_sets_alone_convert_shifts]
"""
