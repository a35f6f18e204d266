"""Words for drawn scenes: names of things, colours, textures, and everyday words beside them."""

from __future__ import annotations

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "round dot"),
    "square": ("block",),
    "triangle": ("pyramid",),
    "hexagon": ("honeycomb cell",),
    "diamond": ("rhombus",),
    "star": ("five-pointed star",),
    "cross": ("plus sign",),
    "ring": ("hoop",),
    "heart": ("love heart",),
    "moon": ("crescent", "crescent moon"),
    "spiral": ("swirl",),
    "arrow": ("pointer",),
    "lightning bolt": ("lightning", "thunderbolt"),
    "tree": ("oak", "leafy tree"),
    "fir tree": ("fir", "pine", "christmas tree"),
    "flower": ("blossom", "daisy"),
    "cloud": ("rain cloud",),
    "sun": ("sunshine",),
    "leaf": ("foliage",),
    "mushroom": ("toadstool",),
    "butterfly": ("moth",),
    "bird": ("songbird", "sparrow"),
    "cat": ("kitten", "cat face"),
    "drop": ("raindrop", "droplet"),
    "cherries": ("cherry", "pair of cherries"),
    "carrot": ("parsnip",),
    "ghost": ("phantom",),
    "snail": ("slug with a shell",),
    "turtle": ("tortoise",),
    "cactus": ("potted cactus",),
    "house": ("home", "cottage"),
    "car": ("automobile", "motor car"),
    "boat": ("ship", "sailing boat"),
    "cup": ("mug", "coffee cup"),
    "key": ("door key",),
    "ladder": ("step ladder",),
    "umbrella": ("parasol",),
    "snowman": ("snow figure",),
    "bottle": ("flask",),
    "lamp": ("table lamp",),
    "chair": ("seat",),
    "table": ("desk",),
    "book": ("open book",),
    "clock": ("wall clock",),
    "bell": ("church bell",),
    "kite": ("flying kite",),
    "rocket": ("spaceship",),
    "hammer": ("mallet",),
    "glasses": ("spectacles", "pair of glasses"),
    "hat": ("top hat",),
    "candle": ("burning candle",),
    "castle": ("fortress",),
    "tent": ("camping tent",),
    "airplane": ("aeroplane", "plane"),
    "bicycle": ("bike",),
    "envelope": ("letter",),
    "flag": ("banner",),
    "crown": ("royal crown",),
    "pencil": ("crayon",),
}
"""Other names of a kind; a kind that is missing here has only its own."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 35, 35),
    "orange": (240, 135, 25),
    "yellow": (245, 215, 45),
    "green": (45, 150, 60),
    "teal": (25, 150, 155),
    "blue": (40, 80, 205),
    "purple": (125, 50, 165),
    "pink": (245, 135, 180),
    "brown": (125, 75, 40),
    "black": (25, 25, 28),
    "white": (247, 247, 245),
    "grey": (135, 138, 142),
}
COLOUR_SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("scarlet", "crimson"),
    "yellow": ("golden",),
    "teal": ("turquoise",),
    "purple": ("violet",),
    "grey": ("gray",),
    "pink": ("rosy",),
}

TEXTURES: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka dot"),
    "checked": ("checked", "checkered"),
    "gradient": ("gradient", "shaded"),
}
"""Each texture with the adjectives that name it."""

TEMPLATES: tuple[str, ...] = (
    "{}",
    "a {}",
    "a photo of a {}",
    "This is a photo of a {}",
    "this is a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a photo of the {}",
    "a small picture with a {}",
    "a cartoon of a {}",
    "there is a {} in this picture",
)

BACKDROPS: tuple[str, ...] = (
    "on a {} background",
    "on {}",
    "in front of a {} wall",
    "with a {} backdrop",
    "against {}",
)

JOINTS: tuple[str, ...] = ("{} and a {}", "{} next to a {}", "{} beside a {}", "{} with a {}")

_NOUNS = """
dog horse cow sheep pig goat lion tiger bear wolf fox deer rabbit mouse rat elephant giraffe
zebra monkey camel kangaroo frog lizard snake crocodile shark whale dolphin octopus crab lobster
ant bee wasp beetle dragonfly grasshopper owl eagle parrot penguin duck goose swan chicken
peacock bread cheese butter egg soup salad pizza pasta rice cake biscuit chocolate honey sugar
salt pepper banana orange lemon grape peach pear plum strawberry melon potato tomato onion
garlic cabbage lettuce cucumber pumpkin bean pea corn wheat coffee tea milk juice water wine
beer plate bowl fork knife spoon pan pot kettle oven fridge sink tap bath shower towel soap
mirror bed pillow blanket sofa shelf drawer cupboard door window wall floor ceiling roof stairs
garden fence gate road street bridge tunnel station airport harbour factory office school
hospital church temple museum library theatre stadium market shop bank hotel restaurant farm
field forest jungle desert mountain hill valley river lake sea ocean beach island volcano cave
glacier waterfall bus train tram truck lorry tractor motorcycle scooter helicopter submarine
canoe ferry wheel engine brake seatbelt trousers shirt jacket coat dress skirt sock shoe boot
glove scarf belt button zip pocket wallet purse bag suitcase backpack watch necklace bracelet
earring coin banknote ticket stamp map globe compass telescope microscope camera television
radio telephone computer keyboard screen printer cable battery magnet lens piano guitar violin
trumpet drum flute harp football tennis basketball racket goal medal trophy puzzle chess doll
robot puppet swing slide sandpit saw drill nail screw spanner pliers axe shovel rake bucket rope
chain hook needle thread scissors paper brush paint statue fountain tower windmill lighthouse
nurse doctor teacher farmer soldier sailor pilot cook painter dancer singer king queen knight
wizard pirate clown baby child woman man crowd family face hand foot eye ear nose mouth tooth
bone brain heartbeat shadow smoke fire steam ice snow rain wind storm fog rainbow sunset night
morning winter spring summer autumn planet comet galaxy satellite barn tyre anvil fern moss
coral sponge pebble crystal feather shell nest egg web hive dust sand mud clay brick tile glass
metal wood plastic rubber leather wool cotton silk carpet curtain napkin tray basket barrel jar
can lid cork pipe valve pump hose fan heater radiator chimney antenna signpost barrier cone
"""
GENERAL_WORDS: tuple[str, ...] = tuple(_NOUNS.split())
"""Everyday nouns that no drawing shows."""


def names_of(kind: str) -> tuple[str, ...]:
    """A kind's own name and its synonyms."""
    return (kind, *SYNONYMS.get(kind, ()))


def colour_names(colour: str) -> tuple[str, ...]:
    """A colour's own name and its synonyms."""
    return (colour, *COLOUR_SYNONYMS.get(colour, ()))
