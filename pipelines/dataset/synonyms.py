"""Words in captions that may replace one another, collected for this project and licensed like its code.

Small on purpose: a word that is not listed has no synonym, and EDA makes another change.
"""

_GROUPS = """
big large huge
small little tiny
old aged ancient
young youthful
happy glad cheerful joyful
sad unhappy gloomy
angry furious mad
pretty beautiful lovely
ugly unsightly
fast quick rapid swift
slow sluggish
bright vivid shining
dark dim gloomy
hot warm
cold chilly icy
wet damp soaked
dry arid
empty vacant
full filled
loud noisy
quiet silent calm
clean spotless
dirty filthy
strong powerful mighty
weak feeble
rich wealthy
hard solid firm
soft gentle tender
round circular
broad wide
narrow slim thin
tall high
short low
strange odd peculiar
funny comical amusing
scared afraid frightened
tired weary exhausted
photo photograph picture image
drawing sketch illustration
painting artwork
sign symbol icon
man guy gentleman
woman lady
child kid youngster
boy lad
girl lass
baby infant
people persons folks
crowd throng
friend companion
doctor physician
teacher instructor
police officer
worker laborer
house home dwelling
building structure
shop store
street road
path trail track
car automobile
truck lorry
bicycle bike cycle
boat vessel
ship vessel
plane airplane aircraft
train railway
dog hound canine
puppy pup
cat feline
kitten kitty
horse steed
cow cattle
pig hog swine
bird fowl
rabbit bunny hare
snake serpent
insect bug
ocean sea
lake pond
river stream
forest woods woodland
hill slope
mountain peak
stone rock
field meadow
grass lawn
flower blossom bloom
tree sapling
rain shower
storm tempest
cloud haze
sun sunshine
night nighttime
morning dawn
evening dusk
food meal
drink beverage
bread loaf
cake pastry
candy sweets
cup mug
glass goblet
plate dish
bottle flask
chair seat
couch sofa
table desk
bed cot
rug carpet
lamp light
door gate
window pane
box carton crate
bag sack
gift present
ball sphere
toy plaything
game match
book volume
letter note
phone telephone
computer machine
clothes clothing garments
shirt blouse
trousers pants
hat cap
coat jacket
shoe boot
money cash
stick rod
walking strolling
running jogging
jumping leaping
sitting seated
standing upright
looking gazing watching
smiling grinning beaming
laughing giggling
crying weeping sobbing
talking speaking chatting
holding gripping
carrying bearing
eating dining
sleeping dozing resting
playing frolicking
cutting slicing
throwing tossing
near beside
front ahead
middle center
edge border
top summit
bottom base
several many various
"""


def _table() -> dict[str, tuple[str, ...]]:
    groups = [line.split() for line in _GROUPS.split("\n") if line]
    table: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for word in group:
            table[word] = table.get(word, ()) + tuple(other for other in group if other != word)
    return table


SYNONYMS = _table()
