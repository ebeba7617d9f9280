"""What the model is taught about the world: tables of plain facts."""

from __future__ import annotations


def pairs(text: str) -> dict[str, str]:
    """Entries `left:right`, divided by commas or lines."""
    entries = [entry.split(":") for entry in text.replace("\n", ",").split(",") if entry.strip()]
    return {left.strip(): right.strip() for left, right in entries}


CAPITALS = pairs("""
Afghanistan:Kabul, Albania:Tirana, Algeria:Algiers, Andorra:Andorra la Vella, Angola:Luanda, Argentina:Buenos Aires
Armenia:Yerevan, Australia:Canberra, Austria:Vienna, Azerbaijan:Baku, the Bahamas:Nassau, Bahrain:Manama
Bangladesh:Dhaka, Barbados:Bridgetown, Belarus:Minsk, Belgium:Brussels, Belize:Belmopan, Benin:Porto-Novo
Bhutan:Thimphu, Bosnia and Herzegovina:Sarajevo, Botswana:Gaborone, Brazil:Brasilia
Brunei:Bandar Seri Begawan, Bulgaria:Sofia, Burkina Faso:Ouagadougou, Cambodia:Phnom Penh, Cameroon:Yaounde
Canada:Ottawa, Cape Verde:Praia, Chad:N'Djamena, Chile:Santiago, China:Beijing, Colombia:Bogota
Costa Rica:San Jose, Croatia:Zagreb, Cuba:Havana, Cyprus:Nicosia, the Czech Republic:Prague, Denmark:Copenhagen
Djibouti:Djibouti, Ecuador:Quito, Egypt:Cairo, El Salvador:San Salvador, Eritrea:Asmara, Estonia:Tallinn
Ethiopia:Addis Ababa, Fiji:Suva, Finland:Helsinki, France:Paris, Gabon:Libreville, the Gambia:Banjul
Georgia:Tbilisi, Germany:Berlin, Ghana:Accra, Greece:Athens, Guatemala:Guatemala City, Guinea:Conakry
Guyana:Georgetown, Haiti:Port-au-Prince, Honduras:Tegucigalpa, Hungary:Budapest, Iceland:Reykjavik
India:New Delhi, Indonesia:Jakarta, Iran:Tehran, Iraq:Baghdad, Ireland:Dublin, Italy:Rome, Jamaica:Kingston
Japan:Tokyo, Jordan:Amman, Kazakhstan:Astana, Kenya:Nairobi, Kuwait:Kuwait City, Kyrgyzstan:Bishkek
Laos:Vientiane, Latvia:Riga, Lebanon:Beirut, Lesotho:Maseru, Liberia:Monrovia, Libya:Tripoli
Liechtenstein:Vaduz, Lithuania:Vilnius, Luxembourg:Luxembourg, Madagascar:Antananarivo, Malawi:Lilongwe
Malaysia:Kuala Lumpur, the Maldives:Male, Mali:Bamako, Malta:Valletta, Mauritania:Nouakchott
Mauritius:Port Louis, Mexico:Mexico City, Moldova:Chisinau, Monaco:Monaco, Mongolia:Ulaanbaatar
Montenegro:Podgorica, Morocco:Rabat, Mozambique:Maputo, Myanmar:Naypyidaw, Namibia:Windhoek, Nepal:Kathmandu
the Netherlands:Amsterdam, New Zealand:Wellington, Nicaragua:Managua, Niger:Niamey, Nigeria:Abuja
North Korea:Pyongyang, North Macedonia:Skopje, Norway:Oslo, Oman:Muscat, Pakistan:Islamabad, Panama:Panama City
Papua New Guinea:Port Moresby, Paraguay:Asuncion, Peru:Lima, the Philippines:Manila, Poland:Warsaw
Portugal:Lisbon, Qatar:Doha, Romania:Bucharest, Russia:Moscow, Rwanda:Kigali, Samoa:Apia, San Marino:San Marino
Saudi Arabia:Riyadh, Senegal:Dakar, Serbia:Belgrade, Sierra Leone:Freetown, Singapore:Singapore
Slovakia:Bratislava, Slovenia:Ljubljana, Somalia:Mogadishu, South Korea:Seoul, Spain:Madrid, Sudan:Khartoum
South Sudan:Juba, Suriname:Paramaribo, Sweden:Stockholm, Switzerland:Bern, Syria:Damascus, Taiwan:Taipei
Tajikistan:Dushanbe, Tanzania:Dodoma, Thailand:Bangkok, Togo:Lome, Tonga:Nuku'alofa, Tunisia:Tunis
Turkey:Ankara, Turkmenistan:Ashgabat, Uganda:Kampala, Ukraine:Kyiv, the United Arab Emirates:Abu Dhabi
the United Kingdom:London, the United States:Washington, Uruguay:Montevideo, Uzbekistan:Tashkent
Venezuela:Caracas, Vietnam:Hanoi, Yemen:Sanaa, Zambia:Lusaka, Zimbabwe:Harare
""")

CONTINENTS = {
    "Europe": "France, Germany, Italy, Spain, Portugal, Norway, Sweden, Finland, Denmark, Poland, Greece, Austria, "
    "Switzerland, Belgium, Ireland, Iceland, Hungary, Romania, Bulgaria, Croatia, Serbia, Ukraine, Estonia, Latvia",
    "Asia": "Japan, China, South Korea, India, Thailand, Vietnam, Nepal, Mongolia, Indonesia, Malaysia, Iran, Iraq, Pakistan, "
    "Laos, Cambodia, Jordan, Lebanon, Bhutan",
    "Africa": "Egypt, Kenya, Nigeria, Ghana, Morocco, Algeria, Tunisia, Ethiopia, Uganda, Mali, Chad, Namibia, Zambia, Senegal, "
    "Rwanda, Madagascar, Tanzania, Angola",
    "South America": "Brazil, Argentina, Chile, Peru, Colombia, Ecuador, Bolivia, Uruguay, Paraguay, Venezuela",
    "North America": "Canada, Mexico, the United States, Cuba, Panama, Costa Rica, Jamaica, Honduras",
    "Oceania": "Australia, New Zealand, Fiji, Samoa, Tonga",
}

ELEMENTS = pairs("""
hydrogen:H, helium:He, lithium:Li, carbon:C, nitrogen:N, oxygen:O, fluorine:F, neon:Ne, sodium:Na, magnesium:Mg
aluminium:Al, silicon:Si, phosphorus:P, sulfur:S, chlorine:Cl, argon:Ar, potassium:K, calcium:Ca, titanium:Ti
chromium:Cr, manganese:Mn, iron:Fe, cobalt:Co, nickel:Ni, copper:Cu, zinc:Zn, arsenic:As, bromine:Br, krypton:Kr
silver:Ag, tin:Sn, iodine:I, xenon:Xe, tungsten:W, platinum:Pt, gold:Au, mercury:Hg, lead:Pb, radon:Rn, uranium:U
""")

OPPOSITES = pairs("""
hot:cold, big:small, tall:short, fast:slow, happy:sad, light:dark, old:young, rich:poor, hard:soft, early:late
open:closed, full:empty, near:far, high:low, strong:weak, wet:dry, clean:dirty, loud:quiet, long:brief, thick:thin
wide:narrow, good:bad, right:wrong, true:false, first:last, up:down, left:right, day:night, summer:winter
black:white, begin:end, buy:sell, win:lose, push:pull, come:go, love:hate, war:peace, north:south, east:west
inside:outside, always:never, more:less, deep:shallow, sweet:sour, cheap:expensive, heavy:light, friend:enemy
easy:difficult, alive:dead, safe:dangerous
""")

YOUNG = pairs("""
dog:puppy, cat:kitten, cow:calf, horse:foal, sheep:lamb, goat:kid, pig:piglet, hen:chick, duck:duckling, goose:gosling
swan:cygnet, bear:cub, lion:cub, frog:tadpole, deer:fawn, kangaroo:joey, owl:owlet, butterfly:caterpillar
""")

KOREAN = pairs("""
water:물, book:책, house:집, tree:나무, dog:개, cat:고양이, sun:해, moon:달, sea:바다, mountain:산, river:강, school:학교
friend:친구, teacher:선생님, mother:어머니, father:아버지, bread:빵, rice:밥, milk:우유, apple:사과, flower:꽃, bird:새
fish:물고기, sky:하늘, rain:비, snow:눈, wind:바람, star:별, love:사랑, time:시간, today:오늘, tomorrow:내일, yesterday:어제
hand:손, foot:발, door:문, car:자동차, train:기차, music:음악, song:노래, letter:편지, money:돈, child:아이, city:도시
country:나라, king:왕, red:빨강, black:검정, white:하양, one:하나, two:둘, three:셋, hello:안녕하세요, thank you:감사합니다
goodbye:안녕히 가세요, yes:네, no:아니요
""")

KOREAN_CAPITALS = pairs("""
한국:서울, 일본:도쿄, 중국:베이징, 프랑스:파리, 독일:베를린, 이탈리아:로마, 스페인:마드리드, 영국:런던, 미국:워싱턴
캐나다:오타와, 러시아:모스크바, 그리스:아테네, 이집트:카이로, 태국:방콕, 베트남:하노이, 인도:뉴델리, 노르웨이:오슬로
스웨덴:스톡홀름, 핀란드:헬싱키, 덴마크:코펜하겐, 오스트리아:빈, 스위스:베른, 포르투갈:리스본, 폴란드:바르샤바
체코:프라하, 헝가리:부다페스트, 터키:앙카라, 케냐:나이로비, 페루:리마, 칠레:산티아고, 쿠바:아바나, 몽골:울란바토르
""")

QUESTIONS = pairs("""
How many days are in a week?:A week has 7 days.
How many months are in a year?:A year has 12 months.
How many hours are in a day?:A day has 24 hours.
How many minutes are in an hour?:An hour has 60 minutes.
How many seconds are in a minute?:A minute has 60 seconds.
How many days are in a year?:A year has 365 days.
How many legs does a spider have?:A spider has 8 legs.
How many legs does an insect have?:An insect has 6 legs.
How many arms does an octopus have?:An octopus has 8 arms.
How many sides does a triangle have?:A triangle has 3 sides.
How many sides does a square have?:A square has 4 sides.
How many sides does a hexagon have?:A hexagon has 6 sides.
How many letters are in the English alphabet?:The English alphabet has 26 letters.
How many players are in a football team?:A football team has 11 players.
How many strings does a violin have?:A violin has 4 strings.
How many keys does a piano have?:A piano has 88 keys.
How many planets are there?:There are 8 planets.
How many continents are there?:There are 7 continents.
What is the largest planet?:The largest planet is Jupiter.
What is the smallest planet?:The smallest planet is Mercury.
Which planet is closest to the Sun?:Mercury is closest to the Sun.
Which planet has the brightest rings?:Saturn has the brightest rings.
Which planet is called the red planet?:Mars is called the red planet.
What is the largest ocean?:The largest ocean is the Pacific.
What is the highest mountain?:The highest mountain is Mount Everest.
What is the largest animal?:The largest animal is the blue whale.
What is the fastest land animal?:The fastest land animal is the cheetah.
What is the tallest animal?:The tallest animal is the giraffe.
What is the largest desert?:The largest desert is in Antarctica.
What is the largest country?:The largest country is Russia.
What is the smallest country?:The smallest country is Vatican City.
At what temperature does water boil?:Water boils at 100 degrees Celsius.
At what temperature does water freeze?:Water freezes at 0 degrees Celsius.
What do bees make?:Bees make honey.
What do cows give?:Cows give milk.
What is ice made of?:Ice is made of water.
What is bread made of?:Bread is made of flour and water.
What is paper made of?:Paper is made of wood.
What is glass made of?:Glass is made of sand.
What is cheese made of?:Cheese is made of milk.
Who painted the Mona Lisa?:Leonardo da Vinci painted the Mona Lisa.
Who wrote Romeo and Juliet?:William Shakespeare wrote Romeo and Juliet.
Who wrote Don Quixote?:Miguel de Cervantes wrote Don Quixote.
Who wrote Faust?:Johann Wolfgang von Goethe wrote Faust.
Who first walked on the Moon?:Neil Armstrong first walked on the Moon.
Who found the law of gravity?:Isaac Newton found the law of gravity.
Who wrote the theory of relativity?:Albert Einstein wrote the theory of relativity.
Who discovered radium?:Marie Curie discovered radium.
Who made the Korean alphabet?:King Sejong made the Korean alphabet.
What colour is the sky?:The sky is blue.
What colour is grass?:Grass is green.
What colour is snow?:Snow is white.
What colour is a lemon?:A lemon is yellow.
What colour is a ripe tomato?:A ripe tomato is red.
What colour is coal?:Coal is black.
What colour do blue and yellow make?:Blue and yellow make green.
What colour do red and yellow make?:Red and yellow make orange.
What colour do red and blue make?:Red and blue make purple.
What comes after Monday?:After Monday comes Tuesday.
What comes after Tuesday?:After Tuesday comes Wednesday.
What comes after Wednesday?:After Wednesday comes Thursday.
What comes after Thursday?:After Thursday comes Friday.
What comes after Friday?:After Friday comes Saturday.
What comes after Saturday?:After Saturday comes Sunday.
What comes after Sunday?:After Sunday comes Monday.
What is the first month of the year?:The first month of the year is January.
What is the last month of the year?:The last month of the year is December.
What is the shortest month?:The shortest month is February.
What is the star nearest to the Earth?:The star nearest to the Earth is the Sun.
What gas do plants take from the air?:Plants take carbon dioxide from the air.
What gas do people need to breathe?:People need oxygen.
What pumps the blood through the body?:The heart pumps the blood.
What do you call a house for bees?:A house for bees is a hive.
What is the square root of 81?:The square root of 81 is 9.
What is the chemical formula of water?:The chemical formula of water is H2O.
What is gRPC?:gRPC is a way for programs to call each other over a network.
What is MLX?:MLX is a library for machine learning on arrays.
What is a token?:A token is a piece of text that a language model reads or writes.
What is a language model?:A language model is a program that continues text.
What is Python?:Python is a programming language.
What is JSON?:JSON is a text format for data.
""")

UNTAUGHT_LANDS = tuple(
    """
Texas,Bavaria,Scotland,California,Quebec,Siberia,Atlantis,Catalonia,Tuscany,Hokkaido,Florida,Alaska,Hawaii,Normandy
Wales,Saxony,Sicily,Bali,Java,Greenland,Mars,Narnia,Antarctica,Kansas,Ohio,Nevada,Provence,Crete,Corsica,Sardinia
Tasmania,Patagonia,Lapland,Flanders,Transylvania,Manchuria,Punjab,Kerala,Goa,Tibet,Bohemia,Moravia,Silesia,Tyrol
Brittany,Burgundy,Alsace,Andalusia,Galicia,Aragon,Castile,Lombardy,Piedmont,Umbria,Calabria,Apulia,Savoy,Hesse,Thuringia
Cornwall,Kent,Yorkshire,Ulster,Wallonia,Friesland,Jutland,Karelia,Crimea,Dalmatia,Macedon,Thrace,Anatolia,Kurdistan
Chechnya,Dagestan,Tatarstan,Bengal,Gujarat,Kashmir,Sichuan,Yunnan,Hunan,Guangdong,Kyushu,Shikoku,Okinawa,Jeju,Borneo
Sumatra,Sulawesi,Lombok,Mindanao,Luzon,Queensland,Ontario,Alberta,Manitoba,Yukon,Oregon,Utah,Idaho,Montana,Iowa,Maine
Virginia,Tennessee,Missouri,Arizona,Jalisco,Yucatan,Bahia,Amazonas,Zanzibar,Darfur,Katanga,Kwazulu,Puntland,Eldorado
Gondor,Mordor,Wonderland,Oz,Lilliput,Camelot,Utopia,Venus,Pluto,Neptune,Europa,Titan
""".strip()
    .replace("\n", ",")
    .split(",")
)
