"""The nouns of cryoeq, and THE CONVENTIONS PAGE. Each line names the test in tests/conventions/ that pins it.

Axes. Arrays are C order: images (y, x), maps (z, y, x); x is the fast axis, row 0 of a file is y = 0.
    Vectors are (x, y) and (x, y, z).
Centre. The origin of an n-pixel axis is pixel n // 2, in real and in Fourier space, for odd and even n. A quarter turn
    of an array is exact about (n - 1) / 2 instead: the encoder therefore sees odd boxes, whose two centres coincide.
Rotation. Poses.rotations is RELION's matrix A (Euler_angles2matrix): it takes volume coordinates to image coordinates,
    r_image = A r_volume; A = Rz(-psi) Ry(-tilt) Rz(-rot) = scipy
    ``Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix().T``.
    Projection is along image z; the slice of the volume's transform is taken at A^T (kx, ky, 0);
    the view direction is the third row of A.
Group action. For g in O(2), the image g.I of pose A is the image of pose rho(g) A of the same volume,
    rho(g) = diag(g, det g); shifts turn with g: t -> g t.
    A mirrored image is a half turn about an in-plane axis, not the other hand.
Shift. Poses.shifts_angstrom is (rlnOriginXAngst, rlnOriginYAngst): shifting the observed image by it centres the
    particle. A predicted image is multiplied by exp(+2 pi i k.o / n), o in pixels, which moves the particle to -o.
Fourier. Images: centred and orthonormal. Maps: centred, the plain sum divided by n, so that a central slice is the
    orthonormal transform of the projection (the sum along z).
    Fourier-cropping from n to m keeps grey values (factor m / n) and multiplies the pixel size by n / m.
CTF. Protein is bright. lambda = 12.2643247 / sqrt(V (1 + 0.978466e-6 V)) Angstrom;
    defocus(theta) = (U + V) / 2 + (U - V) / 2 cos 2(theta - theta_U);
    gamma = -pi lambda defocus s^2 + pi / 2 Cs lambda^3 s^4 - asin(Q0) - phase shift;
    CTF = -sin(gamma) exp(-B s^2 / 4) scale: +Q0 at s = 0 and positive up to the first zero under focus.
    Premultiplied images carry one CTF more: their model is CTF squared.
Hand. Projections cannot tell a map from its mirror image: V'(z, y, x) = V(-z, y, x) with A' = J A J,
    J = diag(1, 1, -1), gives the same images.
Shells. Shell of a coefficient: ROUND(|k|). Resolution of shell i: n * pixel size / i. A resolution is that of the last
    shell before the curve first drops below the threshold: 0.143 between half maps, 0.5 against a truth.
SNR. Variance of the CTF-modulated, shifted signal over the whole box and stack, divided by the variance of the noise.
Units. Angstrom, radians and matrices everywhere; degrees, Euler angles and shifts in pixels exist in file formats and
    reports only.
"""
