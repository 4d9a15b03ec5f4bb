"""Online: each transaction scored as it happens, by the same windows and the same graph as batch scoring.

Imports neither ray nor torch; mlflow only where the registry is asked, off the requests' path.
"""
