"""What a long run says of itself: on a terminal one line that is drawn again and again, elsewhere lines."""

import sys
import time


def duration(seconds):
    """Like 3 min 20 s."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    def __init__(self, out=None):
        self.out = out or sys.stdout
        self.terminal = self.out.isatty()
        self.drawn = False
        self.spent, self.steps = 0.0, 0

    def say(self, text):
        """A line that stays."""
        self.clear()
        print(text, file=self.out, flush=True)

    def draw(self, text):
        """A line that the next one replaces, on a terminal."""
        if self.terminal:
            self.clear()
            print(text[:118], end="", file=self.out, flush=True)
            self.drawn = True

    def clear(self):
        if self.drawn:
            print("\r\033[K", end="", file=self.out)
            self.drawn = False

    def step(self, began):
        """A step that began then has ended."""
        self.spent += time.monotonic() - began
        self.steps += 1

    def left(self, steps):
        """When so many more are done."""
        return f"about {duration(steps * self.spent / self.steps)} left" if self.steps else "time left not known yet"
