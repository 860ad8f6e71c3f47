"""RELION's column labels that other packages read or write, by what they hold; only cryoeq.io spells them."""

# Particles
IMAGE_NAME = "rlnImageName"
MICROGRAPH_NAME = "rlnMicrographName"
COORDINATES = ("rlnCoordinateX", "rlnCoordinateY")
MAX_PROBABILITY = "rlnMaxValueProbDistribution"
SELECTION_Z_SCORE = "rlnParticleSelectZScore"
CLASS_NUMBER = "rlnClassNumber"
CTF_SCALE = "rlnCtfScalefactor"
CTF_BFACTOR = "rlnCtfBfactor"
JUNK_KIND = "cryoeqJunkKind"  # of a simulated truth: none, empty, edge, overlap, broken
HAS_NEIGHBOUR = "cryoeqHasNeighbour"  # of a simulated truth: 1 where another particle reaches into the box
HALF_SET = "rlnRandomSubset"
JUNK_PROBABILITY = "cryoeqJunkProbability"  # that a particle is junk, 0 to 1; RELION keeps columns of other programs

# Half maps and their mask, in postprocess.star
HALF_MAP_1 = "rlnUnfilteredMapHalf1"
HALF_MAP_2 = "rlnUnfilteredMapHalf2"
MASK_NAME = "rlnMaskName"
MASK_SOLVENT_FRACTION = "rlnParticleBoxFractionSolventMask"
FINAL_RESOLUTION = "rlnFinalResolution"
RANDOMISED_FROM = "rlnRandomiseFrom"

# Fourier shell correlation
SHELL = "rlnSpectralIndex"
INVERSE_RESOLUTION = "rlnResolution"
RESOLUTION = "rlnAngstromResolution"
FSC_FINAL = "rlnFourierShellCorrelationCorrected"
FSC_PARTICLE_FRACTION = "rlnFourierShellCorrelationParticleMaskFraction"
FSC_UNMASKED = "rlnFourierShellCorrelationUnmaskedMaps"
FSC_MASKED = "rlnFourierShellCorrelationMaskedMaps"
FSC_RANDOMISED = "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"

# Guinier plot and sharpening
SHARPENING_BFACTOR = "rlnBfactorUsedForSharpening"
GUINIER_SLOPE = "rlnFittedSlopeGuinierPlot"
GUINIER_INTERCEPT = "rlnFittedInterceptGuinierPlot"
GUINIER_CORRELATION = "rlnCorrelationFitGuinierPlot"
INVERSE_SQUARE_RESOLUTION = "rlnResolutionSquared"
LOG_AMPLITUDES = "rlnLogAmplitudesOriginal"
LOG_AMPLITUDES_MTF = "rlnLogAmplitudesMTFCorrected"
LOG_AMPLITUDES_WEIGHTED = "rlnLogAmplitudesWeighted"
LOG_AMPLITUDES_SHARPENED = "rlnLogAmplitudesSharpened"
LOG_AMPLITUDES_INTERCEPT = "rlnLogAmplitudesIntercept"

# Classes, in run_model.star
REFERENCE_DIMENSIONALITY = "rlnReferenceDimensionality"
DATA_DIMENSIONALITY = "rlnDataDimensionality"
ORIGINAL_IMAGE_SIZE = "rlnOriginalImageSize"
CURRENT_RESOLUTION = "rlnCurrentResolution"
CURRENT_IMAGE_SIZE = "rlnCurrentImageSize"
PADDING_FACTOR = "rlnPaddingFactor"
PIXEL_SIZE = "rlnPixelSize"
N_CLASSES = "rlnNrClasses"
LOG_LIKELIHOOD = "rlnLogLikelihood"
MEAN_MAX_PROBABILITY = "rlnAveragePmax"
REFERENCE_IMAGE = "rlnReferenceImage"
CLASS_SHARE = "rlnClassDistribution"
ROTATION_ACCURACY = "rlnAccuracyRotations"
OFFSET_ACCURACY = "rlnAccuracyTranslationsAngst"
ESTIMATED_RESOLUTION = "rlnEstimatedResolution"
OVERALL_COMPLETENESS = "rlnOverallFourierCompleteness"
SSNR = "rlnSsnrMap"
GOLD_STANDARD_FSC = "rlnGoldStandardFsc"
FOURIER_COMPLETENESS = "rlnFourierCompleteness"

# Output nodes of an External job
NODE_NAME = "rlnPipeLineNodeName"
NODE_TYPE = "rlnPipeLineNodeTypeLabel"
