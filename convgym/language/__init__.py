"""Language: speech acts to text (:mod:`~convgym.language.speak`) and text to speech acts (:mod:`~convgym.language.understand`)."""
