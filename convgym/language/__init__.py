"""Speech acts to text (:mod:`~convgym.language.speak`) and back (:mod:`~convgym.language.understand`)."""
