"""The sentences of the stories: how they open, and five plots.

Each choice belongs to one of the story's words, named beside it: that word decides which of the sentences is told.
"""

from __future__ import annotations

Choice = tuple[str, tuple[str, ...]]
"""Whose word decides, and between which sentences."""

OPENING: Choice = (
    "hero",
    (
        "Once upon a time there was a {adjective} {hero} called {name}, who lived near the {place}.",
        "Long ago, a {adjective} {hero} named {name} lived in a small house by the {place}.",
        "{name} was a {adjective} {hero}, and nobody knew the {place} better than {name} did.",
        "On the far side of the {place} lived a {hero} called {name}, who was very {adjective}.",
        "There was once a {adjective} {hero}. Its name was {name}, and its home was the {place}.",
        "In a land of long winters, close to the {place}, a {adjective} {hero} called {name} had a quiet life.",
        "Everybody at the {place} knew {name}, the {adjective} {hero} with the loud laugh.",
        "When the {place} was still young, a {adjective} {hero} by the name of {name} came to live there.",
        "This is the story of {name}, a {adjective} {hero}, and of what happened one year at the {place}.",
        "Few travellers ever came to the {place}, so {name}, a {adjective} {hero}, was often alone.",
    ),
)

LOST: tuple[Choice, ...] = (
    ("thing", (
        "The thing that {name} loved most was {a_thing}, a gift from an old friend.",
        "Every morning {name} looked at {a_thing} that stood beside the bed and smiled.",
        "{name} did not own much, only {a_thing} and a warm blanket.",
        "For many years {name} had kept {a_thing} in a safe corner of the room.",
        "Grandmother had left {name} {a_thing}, and it was more precious than gold.",
    )),
    ("thing", (
        "But one night a storm came, and in the morning the {thing} was gone.",
        "One evening, when {name} came home, the door stood open and the {thing} had disappeared.",
        "One autumn day the water rose, and it washed the {thing} away.",
        "But a thief came in the night, and when {name} woke up, the {thing} was missing.",
        "On a foggy morning {name} lost the {thing} somewhere along the way.",
    )),
    ("hero", (
        '"I must find it," said {name}, "even if I have to walk for a year."',
        "{name} cried a little, and then made a plan.",
        '"Who could have it?" asked {name}, but only the wind answered.',
        "There was no time to lose, so {name} set out at once.",
    )),
    ("place", (
        "First {name} searched the whole {place}, under every stone and behind every door.",
        "All around the {place} nobody had seen it, and nobody had heard anything.",
        "{name} asked at the {place} until late, but everybody only shook their heads.",
        "There were no tracks near the {place}, only a few wet leaves.",
    )),
    ("helper", (
        "On the way {name} met a {helper} that was carrying {a_second}.",
        "Behind a tall tree sat a {helper} with {a_second} in its lap.",
        "After an hour a {helper} came along and showed {name} {a_second}.",
        "Near an old bridge a {helper} was trying to sell {a_second}.",
    )),
    ("second", (
        '"Take this {second} with you," said the {helper}. "You will need it before the sun goes down."',
        '"I can help you," said the {helper}, "if you help me carry my {second} up the hill." So they went together.',
        '"I saw your {thing} this morning," said the {helper}, "and with my {second} we can reach it."',
        "The {helper} listened to the whole tale, nodded and said that the {second} might be useful.",
    )),
    ("hero", (
        "They walked past quiet fields until they could see nothing but stars above them.",
        "The path was long and steep, but the two of them sang all the way.",
        "It began to rain, so they hid under the leaves of a big tree and told each other jokes.",
        "They asked a bird, a beetle and an old woman, and all of them pointed to the east.",
    )),
    ("second", (
        "At last they saw something shine between the rocks: it was the {thing}! With the {second} they pulled it out.",
        "There, high up in the branches, hung the {thing}. They used the {second} to bring it down again.",
        "Deep in a hole lay the {thing}, covered with mud. The {second} was just long enough to reach it.",
        "A tired giant was holding the {thing} in his hand. For the {second} he gladly gave it back.",
    )),
    ("helper", (
        "{name} thanked the {helper} with all heart, and from that day on they were the best of friends.",
        "When they came home, they made tea, and {name} said that a friend is worth more than any {thing}.",
        "That night the {hero} slept deeply, and the {helper} stayed at the {place} for ever.",
        "People still tell of the {hero} and the {helper}, who never gave up. The end.",
    )),
)  # fmt: skip
CONTEST: tuple[Choice, ...] = (
    ("thing", (
        "Every summer there was a contest, and the prize was {a_thing}.",
        "One spring the mayor promised {a_thing} to whoever could tell the best tale.",
        "A letter came: whoever won the great race would get {a_thing}.",
        "At the fair stood {a_thing}, the prize for the strangest dance of all.",
    )),
    ("hero", (
        '"That {thing} will be mine," {name} said and began to practise.',
        "{name} had never won anything before, but this time it felt different.",
        "For weeks {name} practised behind the house, early in the morning and late at night.",
        '"I only want to try," said {name} and signed the long list.',
    )),
    ("helper", (
        "There was one rival to fear: a {helper}, who always came with {a_second}.",
        "Then a {helper} arrived with {a_second} and laughed at all the others.",
        "The strongest of them all was a {helper}, who carried {a_second} for luck.",
        "Last on the list stood a {helper}, known far and wide for {a_second}.",
    )),
    ("second", (
        "On the great day it rained, and the {helper} slipped and dropped the {second}.",
        "When it was time to begin, the {helper} could not find the {second} and turned pale.",
        "Just before the start the {second} fell into the mud, and the {helper} began to cry.",
        "In the middle of it all the {helper} lost the {second} and stopped.",
    )),
    ("hero", (
        "{name} could have gone on alone, but turned back instead.",
        '"Wait!" called {name}, and everybody stared.',
        "{name} thought for a moment and then ran to help.",
        "All the others hurried on, but {name} stayed.",
    )),
    ("second", (
        "Together they found the {second} and cleaned it, and the {helper} smiled again.",
        '"Here is your {second}," said {name}. "Let us finish this side by side."',
        "{name} picked up the {second}, and the two of them walked to the end together.",
        "It took a long time to save the {second}, and by then everybody else was far ahead.",
    )),
    ("place", (
        "The judges of the {place} had seen it all and whispered to each other.",
        "Nobody at the {place} clapped at first, and then everybody did.",
        "The oldest judge of the {place} stood up and shook her head in wonder.",
        "In the evening the judges climbed onto a barrel and asked for silence.",
    )),
    ("thing", (
        '"The {thing} goes to both of you," they said, "for you were the kindest of all."',
        "The {thing} was given to {name}, who had left nobody behind.",
        '"Whoever helps a rival wins," said the judges and handed {name} the {thing}.',
        "So {name} won the {thing} in the end, and nobody was angry about it.",
    )),
    ("helper", (
        "Since that day {name} and the {helper} train together, and they share the {thing}.",
        "The {helper} came to live nearby, and every evening the two of them played cards.",
        "That night the {hero} and the {helper} danced until the stars grew pale. The end.",
        "And what did {name} and the {helper} learn? That one can win without being first.",
    )),
)  # fmt: skip
JOURNEY: tuple[Choice, ...] = (
    ("thing", (
        "One winter the news came that an old friend behind the hills was ill and wished for {a_thing}.",
        "{name} had found {a_thing} for an aunt who lived seven days away.",
        "A message came from far away: the old doctor needed {a_thing} before the new moon.",
        "In a dark corner {name} found {a_thing} that belonged to somebody far away.",
    )),
    ("hero", (
        "So {name} wrapped it in paper, locked the door and went out into the cold.",
        '"I will bring it there myself," said {name}, "however long the road may be."',
        "The next morning {name} put it into a bag and followed the road to the west.",
        "{name} did not like long journeys, but a promise is a promise.",
    )),
    ("place", (
        "Behind the {place} the road ended, and there was nothing but fog.",
        "Soon the {place} was out of sight, and the night came early.",
        "A cold wind blew all day, and the {place} seemed very far away.",
        "On the second day snow fell, and every path looked the same.",
    )),
    ("helper", (
        "There by a small fire sat a {helper}, holding {a_second}.",
        "Suddenly a {helper} jumped out of the bushes and waved {a_second}.",
        "In an empty hut a {helper} was asleep beside {a_second}.",
        "Then a {helper} came along the road with {a_second} on a string.",
    )),
    ("second", (
        '"Without a {second} you will never find the way," the {helper} said.',
        '"Tell me where you are going," said the {helper}, "and I will lend you my {second}."',
        "They shared some bread, and the {helper} explained what the {second} was for.",
        '"Nobody should walk alone in this weather," said the {helper} and took the {second} along.',
    )),
    ("hero", (
        "For two days they walked side by side, and the bag grew heavier with every step.",
        "They sang old songs, counted the trees and forgot how tired they were.",
        "Once they took the wrong turn and had to sleep under a bridge.",
        "On the steepest hill {name} wanted to give up, but not for long.",
    )),
    ("second", (
        "A wide stream stopped them, but with the {second} they built a bridge.",
        "When robbers came near, they made so much noise with the {second} that all of them ran away.",
        "They gave the {second} to a ferryman, who took them across the dark water.",
        "At the last gate a guard asked for a present, and the {helper} gave him the {second}.",
    )),
    ("thing", (
        "At last they knocked on the right door and held out the {thing}.",
        'The door opened. "The {thing}!" cried a voice. "You came all this way for me?"',
        "It was midnight when the {thing} lay on the right table at last.",
        "The {thing} had lost some of its shine, but it was the best present in the world.",
    )),
    ("helper", (
        "They stayed for a week, and the {helper} told stories that nobody had ever heard.",
        "On the way home {name} was not alone: the {helper} came along and stayed for good.",
        "When {name} and the {helper} came back, the bag was empty and their hearts were full.",
        "Ever since, {name} and the {helper} make that journey once a year. The end.",
    )),
)  # fmt: skip
MYSTERY: tuple[Choice, ...] = (
    ("place", (
        "One night a strange noise came from the {place}, and nobody could sleep.",
        "Every evening a small light moved across the {place}, and nobody knew why.",
        "For a week somebody had been singing at the {place} at midnight.",
        "One morning there were large footprints all around the {place}.",
    )),
    ("hero", (
        '"It must be a ghost," the neighbours said, but {name} only laughed.',
        "Everybody was afraid, and {name} was a little afraid too.",
        '"I want to know what it is," said {name} and put on a coat.',
        "The others locked their doors, but {name} took a deep breath and went out.",
    )),
    ("thing", (
        "{name} took {a_thing}, for one never knows, and crept along on quiet feet.",
        "With {a_thing} in one hand and a biscuit in the other, {name} set out.",
        "Under one arm {name} carried {a_thing}, the only thing of use in the house.",
        "It was so dark that {name} held on to {a_thing} and walked very slowly.",
    )),
    ("hero", (
        "Something cracked. Something whispered. Then it was quiet again.",
        "Leaves rustled, and a cold drop fell on {name}'s nose.",
        "Twice {name} stopped to listen, and twice there was nothing but the wind.",
        "Step by step it came closer, until it was only a wall away.",
    )),
    ("helper", (
        "Behind a wall sat no ghost at all, but a {helper} with {a_second}.",
        "There in the dark stood a {helper}, trying to hide {a_second}.",
        "It was only a {helper}, who was looking at {a_second} and sighing.",
        "The ghost was a {helper} in a white sheet, and under it was {a_second}.",
    )),
    ("second", (
        '"I am so sorry," said the {helper}. "My {second} is broken, and I can only mend it at night."',
        '"Please do not tell anybody," the {helper} begged. "This {second} is meant to be a surprise."',
        '"I came to return the {second}," said the {helper}, "but I was too shy to knock."',
        '"I am new here," the {helper} said softly, "and this {second} is all that I have."',
    )),
    ("thing", (
        '"Perhaps my {thing} can help," said {name}, and the two of them set to work.',
        '{name} laughed with relief and said: "Take my {thing} too, it is yours."',
        '"Then you need a friend," said {name} and put down the {thing}.',
        "{name} showed the {helper} the {thing}, and soon they were talking like old friends.",
    )),
    ("second", (
        "They sat together until the sun came up, and the {second} stood between them.",
        "When morning came, the {second} looked as good as new.",
        "Before long the {second} was ready, and both of them were very proud.",
        "The night was almost over when they carried the {second} home.",
    )),
    ("place", (
        "The next day everybody at the {place} came to see it, and there was cake for all.",
        "From then on nobody was afraid of the {place} any more. The end.",
        "Now there is a feast at the {place} once a year, and {name} sits beside the {helper}.",
        "And if you hear a noise at the {place} tonight, it is only the two of them, laughing.",
    )),
)  # fmt: skip
WISH: tuple[Choice, ...] = (
    ("thing", (
        "One day {name} bought {a_thing} from a stranger, and at night it began to speak.",
        "Under the floor {name} discovered {a_thing}, and it glowed in the dark.",
        "The wind had left {a_thing} on the ground, and when {name} touched it, it sneezed.",
        "On a cold birthday {name} got {a_thing} with a note: use it once.",
    )),
    ("thing", (
        '"I can grant one wish," said the {thing}, "but only a good one."',
        '"Whoever owns this {thing} has one wish," a small voice said.',
        "On it stood in tiny letters: this {thing} gives one wish and no more.",
        'The {thing} coughed politely. "One wish," it said. "Choose well."',
    )),
    ("hero", (
        "{name} thought of gold, of a palace, and of a bed made of clouds.",
        '"Only one?" asked {name} and could not sleep all night.',
        "{name} made a list of a hundred wishes and threw it into the fire.",
        "For three days {name} walked up and down and could not choose.",
    )),
    ("helper", (
        "Then a {helper} knocked at the door, crying bitterly over {a_second}.",
        "On the fourth day a {helper} came by, wet from the rain, with {a_second} on the back.",
        "At noon a {helper} stopped to rest and put {a_second} on the grass.",
        "That evening a {helper} sat alone on the steps, holding {a_second}.",
    )),
    ("second", (
        '"My {second} was the only thing I could sell," said the {helper}, "and now it is ruined."',
        '"I have carried this {second} for a year," the {helper} said, "and I cannot find my way home."',
        '"This {second} belonged to my sister," said the {helper}. "She went away, and I miss her."',
        '"Everybody laughs at me and my {second}," the {helper} whispered.',
    )),
    ("place", (
        "The clouds hung low over the {place}, and it was very quiet.",
        "Far away, over the {place}, a single bird was singing.",
        "A warm wind came up from the {place}, and the lamps began to shine.",
        "All the bells of the {place} rang, once and once more.",
    )),
    ("hero", (
        '{name} no longer had to think. "I know my wish," said {name}.',
        "Then {name} smiled, for the choice was suddenly easy.",
        '"Wait here," said {name}, ran into the house and came back at once.',
        "{name} took a deep breath and spoke the wish aloud.",
    )),
    ("second", (
        "There was a flash, and the {second} shone as if the moon lived in it.",
        "Slowly the {second} rose into the air and turned into a door of light.",
        "In a moment the {second} was as new, and somebody came running up the road.",
        "The {second} began to play a tune that made everybody want to dance.",
    )),
    ("thing", (
        "The {thing} never spoke again, but {name} and the {helper} have been friends ever since.",
        "As for the {thing}, it stands above the fire, and {name} has never wished for anything else. The end.",
        "The {thing} fell asleep, and the {helper} stayed for supper, that day and every day.",
        '"Well chosen," said the {thing}, and that was the last that anybody heard of it.',
    )),
)  # fmt: skip
PLOTS = (LOST, CONTEST, JOURNEY, MYSTERY, WISH)
NATURES = (
    "old", "young", "small", "big", "tall", "quiet", "happy", "brave", "clever", "kind", "shy", "proud", "lazy", "quick", "slow", "gentle",
    "curious", "strange", "hungry", "tiny", "cheerful", "careful",
)  # fmt: skip
LOOKS = ("", "", "little ", "blue ", "red ", "green ", "shiny ", "heavy ", "golden ", "very old ")
