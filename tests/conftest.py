from hypothesis import settings

# The machines that run the suite are shared, and a first call compiles.
settings.register_profile("coralline", deadline=None)
settings.load_profile("coralline")
