from .look import Subject as Subject
from .look import find_twin as find_twin
from .look import look as look
from .look import open_picture as open_picture
from .page import build_page as build_page
