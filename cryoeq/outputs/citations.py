"""What to cite: cryoeq, and the papers of the methods that a run used."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cryoeq

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Paper:
    """A paper.

    Args:
        authors: surnames with initials, separated by commas.
        title: its title.
        place: journal, volume and pages, or conference; "arXiv" where there is no other.
        year: of publication.
        doi: digital object identifier; empty where there is none.
        arxiv: number of the preprint; empty where there is none.
    """

    authors: str
    title: str
    place: str
    year: int
    doi: str = ""
    arxiv: str = ""

    @property
    def key(self) -> str:
        """First surname, year, and the first long word of the title, as BibTeX keys commonly are."""
        word = next(word for word in re.findall(r"[a-z]+", self.title.lower()) if len(word) > 3)
        surname = unicodedata.normalize("NFKD", re.split(r"[ ,]", self.authors)[0].lower())
        return f"{surname.encode('ascii', 'ignore').decode()}{self.year}{word}"

    def reference(self) -> str:
        """One line for a list of references."""
        where = f"https://doi.org/{self.doi}" if self.doi else f"https://arxiv.org/abs/{self.arxiv}"
        return f"{self.authors} ({self.year}). {self.title}. {self.place}. {where}"

    def bibtex(self) -> str:
        """An entry for a BibTeX file."""
        people = (name.rpartition(" ") for name in self.authors.split(", "))
        names = [f"{surname}, {' '.join(f'{letter}.' for letter in initials)}" for surname, _, initials in people]
        fields = {
            "author": " and ".join(names), "title": f"{{{self.title}}}", "journal": self.place,
            "year": str(self.year), "doi": self.doi, "eprint": self.arxiv,
        }  # fmt: skip
        body = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items() if value)
        return f"@article{{{self.key},\n{body}}}"


@dataclass(frozen=True)
class Method:
    """Something that a run may do, and whose it is.

    Args:
        name: in a few words.
        papers: to cite for it.
        is_used: whether a reconstruction with these settings does it.
    """

    name: str
    papers: tuple[Paper, ...]
    is_used: Callable[[Settings], bool] = lambda settings: False


def software(commit: str | None = None, version: str = cryoeq.__version__) -> str:
    """How to cite cryoeq itself.

    Args:
        commit: that the run was made with; None where it is not known.
        version: that the run was made with.
    """
    return f"cryoeq, version {version}" + (f", commit {commit[:12]}" if commit else "") + ". Software, MIT licence."


def methods_of(settings: Settings) -> Iterator[Method]:
    """The methods that a reconstruction or refinement used.

    Args:
        settings: those in its ``job.json``.
    """
    return (method for method in METHODS if method.is_used(settings))


def _mode(settings: Settings) -> str:
    return str(settings.get("pose_inference", ""))


def _setting(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _is_search(settings: Settings) -> bool:
    return _mode(settings) in {"search", "hybrid", "refine"}


def _is_ab_initio(settings: Settings) -> bool:
    return _mode(settings) in {"search", "hybrid"}


def _has_encoder(settings: Settings) -> bool:
    proposes = _mode(settings) == "search" and _setting(settings, "search.e_step") == "amortized"
    return proposes or _mode(settings) in {"hybrid", "amortized"}


def _has_classes(settings: Settings) -> bool:
    return _is_ab_initio(settings) and _setting(settings, "search.classes") not in {None, 1}


def _design(part: str, *values: str) -> Callable[[Settings], bool]:
    return lambda settings: _has_encoder(settings) and _setting(settings, f"encoder.design.{part}") in values


_BAYESIAN = Paper(
    "Scheres SHW", "A Bayesian view on cryo-EM structure determination", "Journal of Molecular Biology 415, 406-418",
    2012, "10.1016/j.jmb.2011.11.010",
)  # fmt: skip
_HALF_SETS = Paper(
    "Scheres SHW, Chen S", "Prevention of overfitting in cryo-EM structure determination",
    "Nature Methods 9, 853-854", 2012, "10.1038/nmeth.2115",
)  # fmt: skip
_FSC = Paper(
    "Rosenthal PB, Henderson R",
    "Optimal determination of particle orientation, absolute hand, and contrast loss in single-particle electron "
    "cryomicroscopy", "Journal of Molecular Biology 333, 721-745", 2003, "10.1016/j.jmb.2003.07.013",
)  # fmt: skip
_PHASES = Paper(
    "Chen S, McMullan G, Faruqi AR, Murshudov GN, Short JM, Scheres SHW, Henderson R",
    "High-resolution noise substitution to measure overfitting and validate resolution in 3D structure determination "
    "by single particle electron cryomicroscopy", "Ultramicroscopy 135, 24-35", 2013, "10.1016/j.ultramic.2013.06.004",
)  # fmt: skip
_STOCHASTIC = Paper(
    "Punjani A, Rubinstein JL, Fleet DJ, Brubaker MA",
    "cryoSPARC: algorithms for rapid unsupervised cryo-EM structure determination", "Nature Methods 14, 290-296", 2017,
    "10.1038/nmeth.4169",
)  # fmt: skip
_HEALPIX = Paper(
    "Górski KM, Hivon E, Banday AJ, Wandelt BD, Hansen FK, Reinecke M, Bartelmann M",
    "HEALPix: a framework for high-resolution discretization and fast analysis of data distributed on the sphere",
    "The Astrophysical Journal 622, 759-771", 2005, "10.1086/427976",
)  # fmt: skip
_ML3D = Paper(
    "Scheres SHW, Gao H, Valle M, Herman GT, Eggermont PPB, Frank J, Carazo JM",
    "Disentangling conformational states of macromolecules in 3D-EM through likelihood optimization",
    "Nature Methods 4, 27-29", 2007, "10.1038/nmeth992",
)  # fmt: skip
_RELION3 = Paper(
    "Zivanov J, Nakane T, Forsberg BO, Kimanius D, Hagen WJH, Lindahl E, Scheres SHW",
    "New tools for automated high-resolution cryo-EM structure determination in RELION-3", "eLife 7, e42166", 2018,
    "10.7554/eLife.42166",
)  # fmt: skip
_NON_UNIFORM = Paper(
    "Punjani A, Zhang H, Fleet DJ",
    "Non-uniform refinement: adaptive regularization improves single-particle cryo-EM reconstruction",
    "Nature Methods 17, 1214-1221", 2020, "10.1038/s41592-020-00990-8",
)  # fmt: skip
_EQUIVARIANT_POSES = Paper(
    "de Ruijter L, Cesa G", "Equivariant amortized inference of poses for cryo-EM", "arXiv", 2024, arxiv="2406.01630"
)
_E2CNN = Paper(
    "Weiler M, Cesa G", "General E(2)-equivariant steerable CNNs", "Advances in Neural Information Processing Systems",
    2019, arxiv="1911.08251",
)  # fmt: skip
_NEURIPS = "Advances in Neural Information Processing Systems"
_ACE_EM = Paper(
    "Yao L, Xu R, Gao Z, Ke G, Wang Y", "Boosted ab initio cryo-EM 3D reconstruction with ACE-EM", "arXiv", 2023,
    arxiv="2302.06091",
)  # fmt: skip
_CRYOAI = Paper(
    "Levy A, Poitevin F, Martel J, Nashed Y, Peck A, Miolane N, Ratner D, Dunne M, Wetzstein G",
    "CryoAI: amortized inference of poses for ab initio reconstruction of 3D molecular volumes from real cryo-EM "
    "images", "European Conference on Computer Vision", 2022, arxiv="2203.08138",
)  # fmt: skip
_SAMPLING = Paper(
    "Inal B, Cesa G", "Adaptive sampling for continuous group equivariant neural networks", "arXiv", 2024,
    arxiv="2409.08741",
)  # fmt: skip
_DEGREE = Paper(
    "Veefkind L, Cesa G", "A probabilistic approach to learning the degree of equivariance in steerable CNNs", "arXiv",
    2024, arxiv="2406.03946",
)  # fmt: skip
_IMPLICIT = Paper(
    "Zhdanov M, Hoffmann N, Cesa G", "Implicit convolutional kernels for steerable CNNs", _NEURIPS, 2023,
    arxiv="2212.06096",
)  # fmt: skip
_MOBILE = Paper(
    "Mohamed M, Cesa G, Cohen TS, Welling M", "A data and compute efficient design for limited-resources deep learning",
    "arXiv", 2020, arxiv="2004.09691",
)  # fmt: skip
_BOUND = Paper(
    "Behboodi A, Cesa G, Cohen TS", "A PAC-Bayesian generalization bound for equivariant networks", _NEURIPS, 2022,
    arxiv="2210.13150",
)  # fmt: skip
_SHEAF = Paper(
    "Cesa G, Behboodi A", "Algebraic topological networks via the persistent local homology sheaf", "arXiv", 2023,
    arxiv="2311.10156",
)  # fmt: skip
_LATTICE = Paper(
    "Marchetti GL, Cesa G, Kumar P, Behboodi A", "Neural lattice reduction: a self-supervised geometric deep learning "
    "approach", "arXiv", 2023, arxiv="2311.08170",
)  # fmt: skip
_VIEWS = Paper(
    "Naydenova K, Russo CJ",
    "Measuring the effects of particle orientation to improve the efficiency of electron cryomicroscopy",
    "Nature Communications 8, 629", 2017, "10.1038/s41467-017-00782-3",
)  # fmt: skip
_DIRECTIONAL = Paper(
    "Tan YZ, Baldwin PR, Davis JH, Williamson JR, Potter CS, Carragher B, Lyumkis D",
    "Addressing preferred specimen orientation in single-particle cryo-EM through tilting",
    "Nature Methods 14, 793-796", 2017, "10.1038/nmeth.4347",
)  # fmt: skip

METHODS = (
    Method("Poses by expectation and maximisation, regularised maps", (_BAYESIAN,), _is_search),
    Method("Views on a uniform grid", (_HEALPIX,), _is_search),
    Method("Stochastic ab initio models from noise", (_STOCHASTIC,), _is_ab_initio),
    Method("Independent half sets", (_HALF_SETS,), _is_search),
    Method("Resolution of half maps, sharpening", (_FSC, _PHASES), lambda settings: bool(_mode(settings))),
    Method("Refinement at the full box; defocus of particles (--ctf-refinement)", (_RELION3,), lambda settings: (
        _mode(settings) == "refine" or bool(_setting(settings, "full_box.ctf_refinement")))),
    Method("Several classes (--classes)", (_ML3D,), _has_classes),
    Method("Non-uniform filter (--non-uniform)", (_NON_UNIFORM,), lambda settings: (
        _is_search(settings) and bool(_setting(settings, "full_box.non_uniform")))),
    Method("Equivariant pose encoder", (_EQUIVARIANT_POSES, _E2CNN), _has_encoder),
    Method("Encoder trained on synthetic projections", (_ACE_EM,), lambda settings: (
        _mode(settings) == "hybrid" or (_mode(settings) == "amortized"
                                        and bool(_setting(settings, "loss.synthetic_weight"))))),
    Method("Encoder and map trained end to end", (_CRYOAI,), lambda settings: _mode(settings) == "amortized"),
    Method("Adaptive samples in Fourier nonlinearities", (_SAMPLING,), _design("sampler", "adaptive")),
    Method("Learnt degree of equivariance", (_DEGREE,), lambda settings: (
        bool(settings.get("in_plane_symmetry")) or _design("degree", "learnt")(settings))),
    Method("Implicit steerable kernels", (_IMPLICIT,), _design("kernel", "implicit", "implicit_ctf")),
    Method("Equivariant MobileNetV2, int8 encoders (cryoeq infer --precision int8)", (_MOBILE,),
           _design("trunk", "mobilenet")),
    Method("Generalization bound of an encoder (cryoeq evaluate --bound)", (_BOUND,)),
    Method("Missing views and outliers by local homology (cryoeq screen)", (_SHEAF,)),
    Method("Unit cells of 2D crystals (cryoeq lattice)", (_LATTICE,)),
    Method("Distribution of views (cryoeq orientations)", (_VIEWS,)),
    Method("FSC by direction (cryoeq fsc --directional)", (_DIRECTIONAL,)),
)  # fmt: skip
