"""The app of a Hugging Face Space: the page of ``affnorm-zoo demo``."""

from affnorm_zoo.demo import build_page

if __name__ == "__main__":
    build_page().launch()
