"""Networks of the zoo that paddleseg 2.8.0 lacks, as components of paddleseg."""
