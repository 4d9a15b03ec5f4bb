"""`python -m fraud_ray`: the same as `fraud-ray`."""

from fraud_ray.cli import main

if __name__ == "__main__":
    main()
